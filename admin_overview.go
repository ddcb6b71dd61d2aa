package callback

import (
	"cmp"
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
		Open: a.openAPI, Queues: a.queueInfos, Schedules: a.scheduleInfos,
		Node: node, Counts: &nodeCounts, Canceled: a.countCanceled,
		Failed: func(err error) { a.log.Warn("request to the API refused", zap.Error(err)) },
	})
}

// openAPI gives the API the engine of the store.
func (a *App) openAPI() (engine.Engine, func(), error) {
	s, leave, err := a.look()
	if err != nil {
		return nil, nil, err // not a nil store in an interface
	}
	return s.Engine, leave, nil
}

func openNothing() (engine.Engine, func(), error) { return nil, nil, errNotOpen }

// queueInfos tells of the queues as they are configured.
func (a *App) queueInfos() (list []web.Queue) {
	for name, q := range a.queues {
		list = append(list, web.Queue{
			Name: name, Workers: q.opts.Workers, MaxQueued: q.opts.MaxQueued, Attempts: q.opts.Attempts,
		})
	}
	return list
}

// scheduleInfos returns the schedules that run, by queue and as they are
// configured.
func (a *App) scheduleInfos() (list []web.Schedule, _ error) {
	now := time.Now()
	for _, p := range a.plans {
		path, _, _ := strings.Cut(p.schedule.uri(), "?")
		list = append(list, web.Schedule{
			Queue: p.queue.Name, Schedule: p.schedule.Cron, Timezone: cmp.Or(p.schedule.Zone, "UTC"),
			Method: p.record.Request.Method, URI: path, ID: p.id, NextRun: p.times.Next(now),
		})
	}
	slices.SortStableFunc(list, func(a, b web.Schedule) int { return cmp.Compare(a.Queue, b.Queue) })
	return list, nil
}
