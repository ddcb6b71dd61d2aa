package engine

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine/folder"
)

// openFolder takes the store's folder for this engine, and finds out whether a
// server may be started on it.
func (e *Engine) openFolder() (err error) {
	e.disk = newDisk(e.cfg)
	// Results and signing material of other people's requests lie here.
	if err := os.MkdirAll(e.cfg.Store, 0o700); err != nil {
		return fmt.Errorf("creating the store folder: %w", full(err))
	}
	if err := folder.Check(e.cfg.Store); err != nil {
		return err
	}
	if e.lock, err = lockFolder(e.cfg.Store); err != nil {
		return full(err)
	}
	if e.home.folder, err = findHome(e.cfg.Store); err != nil {
		return full(err)
	}
	switch err := e.stock.open(e.cfg.Store); {
	case errors.Is(err, errNoInventory):
		e.log.Error("the store is damaged: whether files are missing is not known", zap.Error(err))
	case err != nil:
		return err
	}
	err = e.disk.canStore()
	if errors.Is(err, ErrFull) {
		if err := e.disk.throwBallast(); err != nil {
			return err
		}
		err = e.disk.canStore()
	}
	return err
}

// leaveFolder lets another engine have the folder. It may be called whatever has been
// opened.
func (e *Engine) leaveFolder() {
	_ = e.stock.close() // there is nothing that it has not written
	if e.lock != nil {
		e.lock.release()
	}
}

// startEmbedded runs a JetStream server inside the process. It listens on
// nothing; the connection to it is a pipe.
func (e *Engine) startEmbedded(k *link) error {
	for _, prepare := range []func() error{e.restoreStreams, e.mend, e.secureStreams} {
		if err := prepare(); err != nil {
			return err
		}
	}
	opts := &server.Options{
		ServerName:   "caddy-callback",
		DontListen:   true,
		JetStream:    true,
		StoreDir:     e.home.get(),
		SyncInterval: e.cfg.Sync,
		SyncAlways:   e.cfg.Sync <= 0,
		NoSigs:       true, // signals are Caddy's
		// The connection carries the bodies of many deliveries at once. One that has
		// more than this waiting for it is cut.
		MaxPending: maxPending,
		// The server's own bound would refuse what is under way together with what
		// is new. Ours is the disk's free space, and has a reserve for the former.
		JetStreamMaxStore: maxStore,
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("creating the embedded engine: %w", err)
	}
	k.server = srv
	srv.SetLoggerV2(serverLog{e.log.Named("engine").Sugar(), &e.health, &k.left}, false, false, false)
	srv.Start()
	if !srv.ReadyForConnections(startTimeout) {
		return fmt.Errorf("the embedded engine was not ready within %v", startTimeout)
	}
	// A server that looks a message up does nothing else for the connection. One that
	// hangs over it must not keep all of us from finding out.
	k.nc, err = nats.Connect("", append(connectOptions(e.log), nats.InProcessServer(inProcess{srv, &e.health}), nats.FlusherTimeout(publishTimeout))...)
	if err != nil {
		return fmt.Errorf("connecting to the embedded engine: %w", err)
	}
	return nil
}

// inProcess connects to a server without a network.
type inProcess struct {
	*server.Server
	health *health
}

func (s inProcess) InProcessConn() (net.Conn, error) {
	conn, err := s.Server.InProcessConn()
	return &impatient{conn, s.health}, err
}

// An impatient connection is over once something could not be written in time. Who
// else has something to write would wait for it just as long, one after the other.
type impatient struct {
	net.Conn
	health *health
}

func (c *impatient) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.health.suspect.Store(true)
		err = errors.Join(err, c.Close())
	}
	return n, err
}

const (
	maxPending = 256 << 20
	maxStore   = 1 << 60
)

// connectCluster connects to somebody else's servers.
func connectCluster(cfg Config) (*nats.Conn, error) {
	opts := append(connectOptions(cfg.Logger),
		nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(1), nats.FlusherTimeout(pingInterval))
	if cfg.Credentials != "" {
		opts = append(opts, nats.UserCredentials(cfg.Credentials))
	}
	nc, err := nats.Connect(strings.Join(cfg.URLs, ","), opts...)
	if err != nil {
		return nil, fmt.Errorf("connecting to NATS: %w", err)
	}
	return nc, nil
}

// pingInterval is how often a cluster's server is asked whether it is there. One that
// vanished without a word, with its machine or behind a firewall, is left for
// another after two of them, or while much is being sent after one: well before a
// lease lapses. The client library's own is two minutes.
const pingInterval = 5 * time.Second

// reconnectWait is short: a request for a callback is refused while the
// engine is away.
const reconnectWait = 500 * time.Millisecond

func connectOptions(log *zap.Logger) []nats.Option {
	return []nats.Option{
		nats.Name("caddy-callback"),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		// A credential may be refused while the servers' own are being changed.
		nats.IgnoreAuthErrorAbort(),
		// A publish while disconnected must fail, not wait in a buffer for a
		// server that may never hear of it.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("engine disconnected", zap.Error(err))
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("engine reconnected") }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Warn("engine connection error", zap.Error(err))
		}),
	}
}

// oldestServer is the first release whose message schedules can be purged by
// their holder and carry sub-second times.
var oldestServer = [2]int{2, 14}

func checkVersion(nc *nats.Conn) error {
	var major, minor int
	version := nc.ConnectedServerVersion()
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("the NATS server names no version (%q)", version)
	}
	if major < oldestServer[0] || major == oldestServer[0] && minor < oldestServer[1] {
		return fmt.Errorf("the NATS server %s is version %s; %d.%d or newer is needed",
			nc.ConnectedServerName(), version, oldestServer[0], oldestServer[1])
	}
	return nil
}

// checkPayload refuses a server whose messages have no room for a record: a task
// that could be accepted could not be moved on.
func checkPayload(nc *nats.Conn) error {
	if least := int64(recordRoom + headroom); nc.MaxPayload() < least {
		return fmt.Errorf("the NATS server %s has max_payload %d; %d or more is needed",
			nc.ConnectedServerName(), nc.MaxPayload(), least)
	}
	return nil
}

// serverLog passes what the embedded server says to Caddy's log. Its notices
// are of no interest to an operator of Caddy and go to the debug level.
// An error may be one of its disk, after which it stores no more. What a server says
// that was left behind is of no interest either.
type serverLog struct {
	log    *zap.SugaredLogger
	health *health
	left   *atomic.Bool
}

func (l serverLog) Noticef(format string, v ...any) { l.log.Debugf(format, v...) }
func (l serverLog) Debugf(format string, v ...any)  { l.log.Debugf(format, v...) }
func (l serverLog) Tracef(format string, v ...any)  { l.log.Debugf(format, v...) }
func (l serverLog) Fatalf(format string, v ...any)  { l.Errorf(format, v...) }

func (l serverLog) Warnf(format string, v ...any) {
	if l.left.Load() {
		l.log.Debugf(format, v...)
		return
	}
	l.log.Warnf(format, v...)
}

func (l serverLog) Errorf(format string, v ...any) {
	if l.left.Load() {
		l.log.Debugf(format, v...)
		return
	}
	l.log.Errorf(format, v...)
	l.health.suspect.Store(true)
}
