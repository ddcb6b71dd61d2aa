package nats

import (
	"errors"
	"net"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// listen calls serve with each connection to the returned address.
func listen(t testing.TB, serve func(net.Conn)) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return listener.Addr().String()
}

func TestOpenClusterUnavailable(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]func(t *testing.T) string{
		"name does not resolve": func(*testing.T) string { return "nats://no-such-server.invalid:4222" },
		"refuses": func(t *testing.T) string {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			return listener.Addr().String()
		},
		"stays silent": func(t *testing.T) string {
			return listen(t, func(conn net.Conn) { t.Cleanup(func() { conn.Close() }) })
		},
		"closes": func(t *testing.T) string { return listen(t, func(conn net.Conn) { conn.Close() }) },
		"speaks another protocol": func(t *testing.T) string {
			return listen(t, func(conn net.Conn) { _, _ = conn.Write([]byte("220 mail ready\r\n")) })
		},
		"has no JetStream": func(t *testing.T) string {
			return startServer(t, t.TempDir(), func(o *server.Options) { o.JetStream = false }).ClientURL()
		},
		"refuses the credentials": func(t *testing.T) string {
			return startServer(t, t.TempDir(), func(o *server.Options) { o.Authorization = "secret" }).ClientURL()
		},
		"has too few servers": func(t *testing.T) string { return startServer(t, t.TempDir(), nil).ClientURL() },
		"has small messages": func(t *testing.T) string {
			return startServer(t, t.TempDir(), func(o *server.Options) { o.MaxPayload = 64 << 10 }).ClientURL()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// It returns: how soon depends on the machine.
			e, err := Open(t.Context(), Config{URLs: []string{url(t)}, Replicas: 3, Logger: zap.NewNop()})
			if err == nil {
				e.(*Engine).kill()
				t.Fatal("Open succeeded")
			}
			if !errors.Is(err, engine.ErrUnavailable) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestOpenWrongOptions(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		"too many replicas":      {URLs: []string{"127.0.0.1:1"}, Replicas: 6},
		"no file of credentials": {URLs: []string{"127.0.0.1:1"}, Credentials: "no-such-file.creds"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := Open(t.Context(), cfg); err == nil || errors.Is(err, engine.ErrUnavailable) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}
