package integration

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// startOldServer starts a server that announces the given NATS version.
func startOldServer(t *testing.T, version string) string {
	t.Helper()
	return "nats://" + gatewaytest.ServeConns(t, func(conn net.Conn) {
		fmt.Fprintf(conn, `INFO {"server_id":"N","server_name":"old-one","version":%q,"proto":1,"headers":true,"max_payload":1048576,"jetstream":true}`+"\r\n", version)
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			if lines.Text() == "PING" {
				fmt.Fprint(conn, "PONG\r\n")
			}
		}
	})
}

func TestOldServerIsRefused(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2.11.7", "1.99.0", "2.11.0-beta.1", ""} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := gatewaytest.New(t, natsOptions(startOldServer(t, version)), gatewaytest.ExampleSite(t))
			refuses(t, g, fmt.Sprintf(`the NATS server old-one is version \"%s\"; 2.12 or newer is needed`, version))
		})
	}
}

func TestMoreReplicasThanServersIsRefused(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	g := gatewaytest.New(t, "engine nats "+c.URLs(), gatewaytest.ExampleSite(t)) // 3 replicas
	refuses(t, g, "opening the stream CALLBACK: nats: API error: code=500 err_code=10074 description=replicas > 1 not supported in non-clustered mode")
}

func TestAccountWithoutJetStreamIsReported(t *testing.T) {
	t.Parallel()
	site := gatewaytest.ExampleSite(t)
	t.Run("an account", func(t *testing.T) {
		o := newTenancy(t, false)
		file, seed := o.credentials(t)
		c := startGuarded(t, o.config, nil)
		g := gatewaytest.New(t, natsOptions(c.URLs(), "credentials "+file), site)
		g.Launch()
		logs(g, "JetStream not enabled for account")
		keepsSecret(g, seed)
	})
	t.Run("a server", func(t *testing.T) {
		c := startGuarded(t, "", func(c *gatewaytest.Cluster) { c.Plain = true })
		g := gatewaytest.New(t, natsOptions(c.URLs()), site)
		g.Launch()
		logs(g, "JetStream is not enabled on the NATS servers")
	})
}

func TestSmallMaxPayloadIsRefused(t *testing.T) {
	t.Parallel()
	c := startGuarded(t, "max_payload: 65536", nil)
	c.Ready()
	g := gatewaytest.New(t, natsOptions(c.URLs()), gatewaytest.ExampleSite(t))
	refuses(t, g, "the NATS server n0 has max_payload 65536; 524288 or more is needed")
}

// limited configures two users: an administrator, and one who may not create or change
// streams.
const limited = `accounts {
	A: {
		jetstream: enabled
		users: [
			{ user: admin, password: admin }
			{ user: gateway, password: gateway, permissions: {
				publish: {
					allow: ["callback.>", "$O.callback-blobs.>", "$JS.API.>", "$JS.ACK.>", "$JS.FC.>"]
					deny: ["$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>", "$JS.API.STREAM.DELETE.>"]
				}
				subscribe: { allow: ["callback.>", "_INBOX.>"] }
			} }
		]
	}
}`

func TestGatewayWithoutCreatePermissionUsesExistingStreams(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("large ", 1<<18) // stored in the body stream
	site := "callback\nreverse_proxy " + gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(large))
	})
	c := startGuarded(t, limited, func(c *gatewaytest.Cluster) { c.Login = []nats.Option{nats.UserInfo("admin", "admin")} })
	c.Ready()
	as := func(user string) string {
		return natsOptions(strings.Replace(c.URLs(), "://", "://"+user+":"+user+"@", 1))
	}
	g := gatewaytest.Start(t, as("gateway"), site)
	logs(g, `Permissions Violation for Publish to \"$JS.API.STREAM.CREATE.CALLBACK\"`)
	if resp, _ := g.Post("/", "{}"); resp.StatusCode != http.StatusOK {
		t.Errorf("a plain request got %s", resp.Status)
	}
	creator := gatewaytest.Start(t, as("admin"), site)
	delivers(creator)
	creator.Stop()
	rcv := gatewaytest.NewReceiver(t, nil)
	accepts(g, rcv.URL)
	rcv.Next(t)
	before := len(g.Log.String())
	g.Task(rcv.URL)
	if got := rcv.Next(t); len(got.Body) < len(large) {
		t.Errorf("the callback has %d bytes", len(got.Body))
	}
	g.Eventually("nothing is under way", nothingUnderWay(g))
	if log := g.Log.String()[before:]; strings.Contains(log, "Permissions Violation") {
		t.Error("the server denied an operation of the gateway")
	}
}

func TestForeignStreamWithOurSubjectsIsReported(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	nc := must[*nats.Conn](t)(nats.Connect(c.URLs()))
	defer nc.Close()
	js := must[jetstream.JetStream](t)(jetstream.New(nc))
	must[jetstream.Stream](t)(js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "THEIRS", Subjects: []string{"callback.>"}}))
	g := gatewaytest.New(t, c.Options(), gatewaytest.ExampleSite(t))
	refuses(t, g, "opening the stream CALLBACK: nats: API error: code=400 err_code=10065 description=subjects overlap with an existing stream")
}

// nothingUnderWay returns nil when no task is unfinished.
func nothingUnderWay(g *gatewaytest.Gateway) func() error {
	return func() error {
		for _, state := range []string{"running", "delivering"} {
			if n := g.Metrics()[`caddy_callback_tasks{state="`+state+`"}`]; n != 0 {
				return fmt.Errorf("%v are %s", n, state)
			}
		}
		return nil
	}
}
