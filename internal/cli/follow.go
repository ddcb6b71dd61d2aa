package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Job is the task of `caddy callback run`, accepted and not yet run.
type Job struct {
	ID          string
	HasCallback bool
	// Tasks looks up the task until Quit ends.
	Tasks engine.Tasks
	Quit  context.Context
	// Run runs the task until it has its verdict.
	Run func()
	// Cancel sets the verdict FAILED, unless the task has a verdict.
	Cancel func()
}

const (
	// refreshInterval is how often the progress line is refreshed.
	refreshInterval = 500 * time.Millisecond

	// sameInterrupt is the interval within which two interrupts count as one: programs
	// such as timeout and make repeat the shell's.
	sameInterrupt = 300 * time.Millisecond
)

// follower shows the progress of a job.
type follower struct {
	*Job
	log      *Progress
	out      *Output
	reported int // number of attempts already printed
}

// Follow runs a job, waits until its callback is delivered, and returns the exit code. An
// interrupt cancels the task; another one ends the wait. out is the task's client.
func (j *Job) Follow(out *Output, log *Progress, interrupts <-chan os.Signal) (code int) {
	f := &follower{Job: j, log: log, out: out}
	log.Begin("running")
	defer log.End()
	served := make(chan struct{})
	go func() {
		defer close(served)
		j.Run()
	}()
	ctx, cancel := context.WithCancel(j.Quit)
	changes, watched := f.watch(ctx)
	defer func() {
		cancel()
		<-watched
	}()
	var interrupted time.Time
	var rec *task.Record // the latest version
	for {
		select {
		case <-served:
			served = nil
			if out.last != 0 && out.last != '\n' {
				log.FreshLine() // the progress line must not overwrite the response
			}
			log.Begin("calling back")
		case rec = <-changes:
		case <-interrupts:
			switch {
			case interrupted.IsZero():
				interrupted = time.Now()
				f.cancel()
			case time.Since(interrupted) > sameInterrupt:
				return f.giveUp()
			}
		case <-time.After(refreshInterval):
		}
		log.Refresh()
		if served != nil || rec == nil {
			continue
		}
		if code, over := f.look(rec); over {
			return code
		}
	}
}

// watch sends the task, and sends it again after every change, until ctx ends. Then it
// closes done.
func (f *follower) watch(ctx context.Context) (changes <-chan *task.Record, done <-chan struct{}) {
	c, ended := make(chan *task.Record), make(chan struct{})
	go func() {
		defer close(ended)
		for since := uint64(0); ctx.Err() == nil; {
			rec, err := f.Tasks.Wait(ctx, f.ID, since)
			if err != nil { // the store is unavailable, and has logged it
				select {
				case <-time.After(refreshInterval):
				case <-ctx.Done():
				}
				continue
			}
			since = rec.Version
			select {
			case c <- rec:
			case <-ctx.Done():
			}
		}
	}()
	return c, ended
}

func (f *follower) cancel() {
	f.Cancel()
	if f.HasCallback {
		f.log.Line("interrupted; the callback is still being delivered. Interrupt again to give up")
	}
}

// look prints the attempts made since the last call. It returns the exit code if the
// task is over.
func (f *follower) look(rec *task.Record) (code int, over bool) {
	for ; f.reported < rec.Tries; f.reported++ {
		// The record keeps only the last attempts.
		i := len(rec.Attempts) - (rec.Tries - f.reported)
		if i >= 0 && !rec.Attempts[i].At.IsZero() {
			f.report(rec, f.reported+1, rec.Attempts[i])
		}
	}
	if rec.State != task.Done && rec.State != task.Dead {
		return 0, false
	}
	f.log.Line("%s", f.outcome(rec))
	return f.codeOf(rec), true
}

// outcome is the last line that the command prints.
func (f *follower) outcome(rec *task.Record) string {
	line := string(rec.Status)
	if rec.Status != task.Complete {
		line += ": " + reasonOf(rec)
	}
	switch {
	case rec.State == task.Dead:
		line += "; callback not delivered"
	case f.HasCallback:
		line += "; callback delivered"
	}
	return line + "; task " + rec.ID
}

// report prints a failed attempt.
func (f *follower) report(rec *task.Record, number int, a task.Attempt) {
	if a.StatusCode >= 200 && a.StatusCode < 300 {
		return
	}
	text := a.Error
	if text == "" {
		text = fmt.Sprintf("%d %s", a.StatusCode, http.StatusText(a.StatusCode))
	}
	wait := time.Until(rec.NextAttemptAt).Round(100 * time.Millisecond)
	next := ""
	switch {
	case rec.State == task.Dead && number == rec.Tries:
		next = "; given up"
	case wait > 0 && number == rec.Tries:
		next = "; next in " + wait.String()
	}
	f.log.Line("callback, attempt %d: %s%s", number, text, next)
}

// reasonOf says why a task has failed or timed out.
func reasonOf(rec *task.Record) string {
	if rec.Error != "" {
		return rec.Error
	}
	return fmt.Sprintf("the endpoint answered %d %s", rec.UpstreamStatus, http.StatusText(rec.UpstreamStatus))
}

// giveUp stops waiting for the task, and returns the exit code.
func (f *follower) giveUp() int {
	rec, err := f.Tasks.Get(f.Quit, f.ID)
	switch {
	case err != nil:
		return ExitFailed
	case f.HasCallback && rec.State != task.Done:
		f.log.Line("given up; callback not delivered; task %s", f.ID)
		return ExitUndelivered
	}
	return f.codeOf(rec)
}

// codeOf returns the exit code of a finished task.
func (f *follower) codeOf(rec *task.Record) int {
	switch {
	case rec.State == task.Dead:
		return ExitUndelivered
	case rec.Status == task.TimedOut:
		return ExitTimeout
	case rec.Status == task.Complete && !f.out.failed.Load():
		return ExitDone
	default:
		return ExitFailed
	}
}

// Forward is the endpoint of a run: it sends the request and streams the response. The
// error means that there is no response. Its text has no URL, whose query may contain
// secrets.
func Forward(w http.ResponseWriter, r *http.Request, log *Progress) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // keep the response's own encoding
	defer transport.CloseIdleConnections()
	client := http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(r)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		if r.Context().Err() == nil {
			log.Line("%v", err)
		}
		return err
	}
	defer resp.Body.Close()
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(w, resp.Body); err != nil {
		panic(http.ErrAbortHandler) // as reverse_proxy does
	}
	return nil
}

// Output is the client of a run: it writes the body of the response to standard output.
type Output struct {
	header http.Header
	log    *Progress
	last   byte        // the last byte written; 0 if none
	failed atomic.Bool // writing to standard output failed
}

// NewOutput returns an Output that ends the progress line before it writes.
func NewOutput(log *Progress) *Output { return &Output{header: make(http.Header), log: log} }

// Header implements [http.ResponseWriter].
func (o *Output) Header() http.Header { return o.header }

// WriteHeader implements [http.ResponseWriter]. The status is not shown.
func (o *Output) WriteHeader(int) {}

// Flush implements [http.Flusher]. Writes are not buffered.
func (o *Output) Flush() {}

// Write implements [http.ResponseWriter].
func (o *Output) Write(p []byte) (int, error) {
	o.log.End()
	if len(p) > 0 {
		o.last = p[len(p)-1]
	}
	n, err := os.Stdout.Write(p)
	if err != nil && !errors.Is(err, syscall.EPIPE) { // the reader of a pipe may leave early
		o.failed.Store(true)
		o.log.Line("standard output: %v", err)
	}
	return n, err
}
