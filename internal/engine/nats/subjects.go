package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// pageTimeout bounds the wait for one page of subjects. The server makes each of
// all subjects that match, however few are on it: of a million in a second, at best.
// [jetstream.Stream.Info] has [publishTimeout] for all pages together.
const pageTimeout = time.Minute

// subjectPage lists subjects of a stream that match filter: of all of them, in their
// order, up to [server.JSMaxSubjectDetails] after the first offset. It returns how
// many match, too.
func (k *link) subjectPage(ctx context.Context, stream, filter string, offset int) (page []string, total int, err error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	request, err := json.Marshal(server.JSApiStreamInfoRequest{
		ApiPagedRequest: server.ApiPagedRequest{Offset: offset}, SubjectsFilter: filter,
	})
	if err != nil {
		return nil, 0, err
	}
	msg, err := k.nc.RequestWithContext(ctx, fmt.Sprintf(server.JSApiStreamInfoT, stream), request)
	if err != nil {
		return nil, 0, fmt.Errorf("listing what stands on %s: %w", filter, err)
	}
	var answer struct {
		Error *server.ApiError `json:"error"`
		Total int              `json:"total"`
		State struct {
			Subjects map[string]uint64 `json:"subjects"`
		} `json:"state"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return nil, 0, fmt.Errorf("listing what stands on %s: %w", filter, err)
	}
	if answer.Error != nil {
		return nil, 0, fmt.Errorf("listing what stands on %s: %w", filter, answer.Error)
	}
	page = make([]string, 0, len(answer.State.Subjects))
	for subject := range answer.State.Subjects {
		page = append(page, subject)
	}
	slices.Sort(page)
	return page, answer.Total, nil
}

// subjects lists the subjects of a stream that match filter, however many.
func (k *link) subjects(ctx context.Context, stream, filter string) (map[string]struct{}, error) {
	all := make(map[string]struct{})
	for offset := 0; ; {
		page, total, err := k.subjectPage(ctx, stream, filter, offset)
		if err != nil {
			return nil, err
		}
		for _, subject := range page {
			all[subject] = struct{}{}
		}
		if offset += len(page); offset >= total || len(page) == 0 {
			return all, nil
		}
	}
}

// heldTokens lists the hosts for whose turn deliveries wait, by subject token. It
// does not list all deliveries: a host that answers nothing may have very many.
func (k *link) heldTokens(ctx context.Context) (map[string]struct{}, error) {
	tokens := make(map[string]struct{})
	for offset := 0; ; {
		page, total, err := k.subjectPage(ctx, liveStream, heldSubject+">", offset)
		if err != nil {
			return nil, err
		}
		for _, subject := range page {
			tokens[strings.Clone(heldToken(subject))] = struct{}{}
		}
		end := offset + len(page)
		if end >= total || len(page) == 0 {
			return tokens, nil
		}
		// Those of the last one's host stand together.
		last := heldSubject + heldToken(page[len(page)-1]) + "."
		_, n, err := k.subjectPage(ctx, liveStream, last+"*", math.MaxInt32)
		if err != nil {
			return nil, err
		}
		first, _ := slices.BinarySearch(page, last)
		offset = max(end, offset+first+n)
	}
}

// heldToken returns the host's token of a subject on which a delivery is held.
func heldToken(subject string) string {
	token, _, _ := strings.Cut(strings.TrimPrefix(subject, heldSubject), ".")
	return token
}
