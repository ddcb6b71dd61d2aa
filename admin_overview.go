package callback

import (
	"cmp"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// nodeCounts are those of this process: a reload does not begin them anew.
var nodeCounts web.NodeCounts

// countEnded counts a task that has its verdict.
func countEnded(rec *task.Record) {
	var tally web.Tally
	switch rec.Status {
	case task.Complete:
		tally.Completed = 1
	case task.TimedOut:
		tally.TimedOut = 1
	default:
		tally.Failed = 1
	}
	nodeCounts.Add(tally)
	nodeCounts.TaskTook(rec.FinishedAt.Sub(rec.CreatedAt))
}

// countAttempt counts an attempt to deliver a callback.
func countAttempt(rec *task.Record, outcome string) {
	if outcome != outcomeDelivered {
		nodeCounts.Add(web.Tally{AttemptsFailed: 1})
		return
	}
	nodeCounts.Add(web.Tally{Delivered: 1})
	since := rec.FinishedAt
	if n := len(rec.Redelivered); n > 0 {
		since = rec.Redelivered[n-1]
	}
	nodeCounts.DeliveryTook(rec.DeliveredAt.Sub(since))
}

// newAPI makes the app's part of the API.
func (a *App) newAPI() *web.API {
	node, err := os.Hostname()
	if err != nil {
		node = "localhost"
	}
	return web.NewAPI(web.APIConfig{
		Open: a.look, Queues: a.queueInfos, Schedules: a.scheduleInfos, Attempting: a.attempting,
		Node: node, Counts: &nodeCounts, Canceled: a.countCanceled,
		Failed: func(err error) { a.log.Warn("request to the API refused", zap.Error(err)) },
	})
}

var errNotOpen = errors.New("no callback app is open")

func openNothing() (*engine.Engine, func(), error) { return nil, nil, errNotOpen }

// queueInfos tells of the queues as they are configured.
func (a *App) queueInfos() (list []web.Queue) {
	for name, q := range a.queues {
		list = append(list, web.Queue{
			Name: name, Workers: q.opts.Workers, MaxQueued: q.opts.MaxQueued, Attempts: q.opts.Attempts,
		})
	}
	return list
}

// scheduleInfos tells of the schedules that run, by queue and as they are
// configured.
func (a *App) scheduleInfos() (list []web.Schedule, _ error) {
	for _, q := range a.queues {
		schedules, err := q.schedules()
		if err != nil {
			return nil, err
		}
		for i, s := range q.opts.Schedules {
			path, _, _ := strings.Cut(s.uri(), "?")
			list = append(list, web.Schedule{
				Queue: q.Name, Schedule: s.Cron, Timezone: cmp.Or(s.Zone, "UTC"),
				Method: s.request().Method, URI: path, Name: schedules[i].Name, NextTick: s.nextTick(time.Now()),
			})
		}
	}
	slices.SortStableFunc(list, func(a, b web.Schedule) int { return cmp.Compare(a.Queue, b.Queue) })
	return list, nil
}

// attempting returns how many attempts are made to each host, by the engine's
// name of it.
func (a *App) attempting() map[string]int {
	if a.deliverer == nil {
		return make(map[string]int)
	}
	return a.deliverer.hosts.attempting()
}

func (hs *hosts) attempting() map[string]int {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	all := make(map[string]int, len(hs.all))
	for name, h := range hs.all {
		if h.running > 0 {
			all[name] = h.running
		}
	}
	return all
}
