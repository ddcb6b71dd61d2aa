package callback

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

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/cli"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// run is one task from the command line: a Handler without a server, in front of an
// endpoint. Standard output is its client.
type run struct {
	app      *App
	h        *Handler
	request  *http.Request
	callback *task.Callback // nil if there is none
	host     string         // host and port of the callback
	log      *cli.Progress

	reported int         // number of attempts already printed
	unheard  atomic.Bool // writing the response to standard output failed
}

// runOnce runs one task from the command line.
func runOnce(cmd *cobra.Command, o *cli.Run) error {
	log := cli.NewProgress(os.Stderr)
	folder, err := os.MkdirTemp("", "caddy-callback-")
	if err != nil {
		log.Line("making a folder for the task: %v", err)
		return shell.End(cmd, cli.ExitFailed)
	}
	defer os.RemoveAll(folder) //nolint:errcheck // the folder is a temporary one
	r, err := newRun(o, log, folder)
	if err != nil {
		return shell.Misused(cmd, err)
	}
	interrupts := cli.Interrupts()
	if err := r.app.Start(); err != nil {
		log.Line("%v", err)
		return shell.End(cmd, cli.ExitFailed)
	}
	r.app.join()
	code := r.main(interrupts)
	r.close()
	return shell.End(cmd, code)
}

const (
	// refreshInterval is how often the progress line is refreshed.
	refreshInterval = 500 * time.Millisecond

	// sameInterrupt is the interval within which two interrupts count as one: programs
	// such as timeout and make repeat the shell's.
	sameInterrupt = 300 * time.Millisecond
)

// main runs the task, waits until its callback is delivered, and returns the exit code.
func (r *run) main(interrupts <-chan os.Signal) int {
	s, leave, err := r.app.enter()
	if err != nil {
		r.log.Line("%v", err)
		return cli.ExitFailed
	}
	out := &output{header: make(http.Header), run: r}
	x, err := r.h.claim(s, r.callback, r.host, out, r.request)
	if err != nil {
		leave()
		r.log.Line("%v", err)
		return cli.ExitFailed
	}
	r.log.Begin("running")
	defer r.log.End()
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer leave()
		r.serve(x)
	}()
	ctx, cancel := context.WithCancel(s.quit)
	changes, watched := r.watch(ctx, s, x.rec.ID)
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
				r.log.FreshLine() // the progress line must not overwrite the response
			}
			r.log.Begin("calling back")
		case rec = <-changes:
		case <-interrupts:
			switch {
			case interrupted.IsZero():
				interrupted = time.Now()
				r.cancel(x)
			case time.Since(interrupted) > sameInterrupt:
				return r.giveUp(s, x.rec.ID)
			}
		case <-time.After(refreshInterval):
		}
		r.log.Refresh()
		if served != nil || rec == nil {
			continue
		}
		if code, over := r.look(rec); over {
			return code
		}
	}
}

// watch sends the task, and sends it again after every change, until ctx ends. Then it
// closes done.
func (r *run) watch(ctx context.Context, e engine.Engine, id string) (changes <-chan *task.Record, done <-chan struct{}) {
	c, ended := make(chan *task.Record), make(chan struct{})
	go func() {
		defer close(ended)
		for since := uint64(0); ctx.Err() == nil; {
			rec, err := e.Wait(ctx, id, since)
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

// serve runs the task until it has its verdict.
func (r *run) serve(x *execution) {
	defer func() {
		// An aborted response panics so that a server closes its client's connection.
		if cause := recover(); cause != nil && cause != http.ErrAbortHandler {
			panic(cause)
		}
	}()
	_ = x.serve(r.request, caddyhttp.HandlerFunc(r.forward)) // the verdict has the error
}

// forward is the endpoint: it sends the request and streams the response.
func (r *run) forward(w http.ResponseWriter, req *http.Request) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // keep the response's own encoding
	defer transport.CloseIdleConnections()
	client := http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		if req.Context().Err() == nil {
			r.log.Line("%v", withoutURL(err))
		}
		return caddyhttp.Error(http.StatusBadGateway, err)
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

// withoutURL returns the error of a request without its URL, whose query may contain
// secrets.
func withoutURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// cancel sets the verdict FAILED, unless the task has a verdict.
func (r *run) cancel(x *execution) {
	x.settle(verdict{status: task.Failed, message: errCanceled, cut: context.Canceled})
	if r.callback != nil {
		r.log.Line("interrupted; the callback is still to come. Interrupt again to give it up")
	}
}

// look prints the attempts made since the last call. It returns the exit code if the
// task is over.
func (r *run) look(rec *task.Record) (code int, over bool) {
	for ; r.reported < rec.Tries; r.reported++ {
		// The record keeps only the last attempts.
		i := len(rec.Attempts) - (rec.Tries - r.reported)
		if i >= 0 && !rec.Attempts[i].At.IsZero() {
			r.report(rec, r.reported+1, rec.Attempts[i])
		}
	}
	if rec.State != task.Done && rec.State != task.Dead {
		return 0, false
	}
	r.log.Line("%s", r.outcome(rec))
	return r.codeOf(rec), true
}

// outcome is the last line that the command prints.
func (r *run) outcome(rec *task.Record) string {
	line := string(rec.Status)
	if rec.Status != task.Complete {
		line += ": " + reasonOf(rec)
	}
	switch {
	case rec.State == task.Dead:
		line += "; callback not delivered"
	case r.callback != nil:
		line += "; callback delivered"
	}
	return line + "; task " + rec.ID
}

// report prints a failed attempt.
func (r *run) report(rec *task.Record, number int, a task.Attempt) {
	if a.StatusCode >= 200 && a.StatusCode < 300 {
		return
	}
	said := a.Error
	if said == "" {
		said = fmt.Sprintf("%d %s", a.StatusCode, http.StatusText(a.StatusCode))
	}
	wait := time.Until(rec.NextAttemptAt).Round(100 * time.Millisecond)
	next := ""
	switch {
	case rec.State == task.Dead && number == rec.Tries:
		next = "; given up"
	case wait > 0 && number == rec.Tries:
		next = "; next in " + wait.String()
	}
	r.log.Line("callback, attempt %d: %s%s", number, said, next)
}

// reasonOf says why a task has failed or timed out.
func reasonOf(rec *task.Record) string {
	if rec.Error != "" {
		return rec.Error
	}
	return fmt.Sprintf("the endpoint answered %d %s", rec.UpstreamStatus, http.StatusText(rec.UpstreamStatus))
}

// giveUp stops waiting for a task, and returns the exit code.
func (r *run) giveUp(s *sharedStore, id string) int {
	rec, err := s.Get(s.quit, id)
	switch {
	case err != nil:
		return cli.ExitFailed
	case r.callback != nil && rec.State != task.Done:
		r.log.Line("given up; callback not delivered; task %s", id)
		return cli.ExitUndelivered
	}
	return r.codeOf(rec)
}

// codeOf returns the exit code of a finished task.
func (r *run) codeOf(rec *task.Record) int {
	switch {
	case rec.State == task.Dead:
		return cli.ExitUndelivered
	case rec.Status == task.TimedOut:
		return cli.ExitTimeout
	case rec.Status == task.Complete && !r.unheard.Load():
		return cli.ExitDone
	default:
		return cli.ExitFailed
	}
}

// closeTimeout bounds the wait for a program that does not read the command's standard
// output.
const closeTimeout = 5 * time.Second

// close ends the task and closes the engine. Cleanup alone would close it in the
// background.
func (r *run) close() {
	s := r.app.store.Load()
	if s == nil {
		return
	}
	s.log.Store(zap.NewNop()) // remaining tasks have been reported
	s.quitNow(errStopped)
	_ = r.app.Stop()    // it never fails
	_ = r.app.Cleanup() // it never fails
	select {
	case <-s.closed:
	case <-time.After(closeTimeout):
	}
}

// output is the client of a run: it writes the body of the response to standard output.
type output struct {
	header http.Header
	run    *run
	last   byte // the last byte written; 0 if none
}

func (o *output) Header() http.Header { return o.header }
func (o *output) WriteHeader(int)     {}
func (o *output) Flush()              {} // writes are not buffered

func (o *output) Write(p []byte) (int, error) {
	o.run.log.End()
	if len(p) > 0 {
		o.last = p[len(p)-1]
	}
	n, err := os.Stdout.Write(p)
	if err != nil && !errors.Is(err, syscall.EPIPE) { // the reader of a pipe may leave early
		o.run.unheard.Store(true)
		o.run.log.Line("standard output: %v", err)
	}
	return n, err
}
