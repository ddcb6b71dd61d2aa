package integration

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// refuses starts a gateway whose cluster cannot be used. It checks that plain requests
// pass, that requests with a callback are refused, and that the log has the reason.
func refuses(t *testing.T, g *gatewaytest.Gateway, want string) {
	t.Helper()
	g.Start()
	logs(g, want)
	if resp, text := g.Post("/", "{}"); resp.StatusCode != http.StatusOK {
		t.Errorf("a plain request got %s %s", resp.Status, text)
	}
	resp, text := g.Post("/", `{"callback_url":"https://receiver.example/"}`)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a request for a callback got %s %s", resp.Status, text)
	}
}

// doesNotStart starts a gateway with a configuration that is an error.
func doesNotStart(t *testing.T, g *gatewaytest.Gateway, want string) {
	t.Helper()
	g.Launch()
	select {
	case <-g.Done:
	case <-time.After(gatewaytest.Patience):
		t.Fatal("the gateway did not exit")
	}
	if log := g.Log.String(); g.Cmd.ProcessState.ExitCode() == 0 || !strings.Contains(log, want) {
		t.Errorf("the gateway exited with %v and its log lacks %q", g.Cmd.ProcessState, want)
	}
}

// logs waits until the gateway's log contains a text.
func logs(g *gatewaytest.Gateway, want string) {
	g.T.Helper()
	g.Eventually("the log contains "+want, func() error {
		if !strings.Contains(g.Log.String(), want) {
			return fmt.Errorf("the log does not contain it")
		}
		return nil
	})
}

// keepsSecret checks that neither the log nor the admin endpoint shows secrets.
func keepsSecret(g *gatewaytest.Gateway, secrets ...string) {
	g.T.Helper()
	for _, secret := range secrets {
		if strings.Contains(g.Log.String(), secret) {
			g.T.Errorf("the log has the secret %s", secret)
		}
	}
}

// delivers checks that the gateway delivers a task's callback.
func delivers(g *gatewaytest.Gateway) {
	g.T.Helper()
	rcv := gatewaytest.NewReceiver(g.T, nil)
	id := g.Task(rcv.URL)
	if got := rcv.Next(g.T); got.TaskID() != id {
		g.T.Errorf("the callback is %v", got.Header)
	}
}

// tenancy is a NATS operator with one account that has JetStream.
type tenancy struct {
	config  string
	account nkeys.KeyPair
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newTenancy(t *testing.T, hasJetStream bool) *tenancy {
	t.Helper()
	key, text := must[nkeys.KeyPair](t), must[string](t)
	operator, account, system := key(nkeys.CreateOperator()), key(nkeys.CreateAccount()), key(nkeys.CreateAccount())
	claim := func(name string, pair nkeys.KeyPair, hasJetStream bool) (id, token string) {
		id = text(pair.PublicKey())
		claims := jwt.NewAccountClaims(id)
		claims.Name = name
		if hasJetStream {
			claims.Limits.JetStreamLimits = jwt.JetStreamLimits{
				MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit,
			}
		}
		return id, text(claims.Encode(operator))
	}
	accountID, accountToken := claim("callbacks", account, hasJetStream)
	systemID, systemToken := claim("system", system, false)
	operatorClaims := jwt.NewOperatorClaims(text(operator.PublicKey()))
	operatorClaims.SystemAccount = systemID
	return &tenancy{account: account, config: fmt.Sprintf(`
		operator: %s
		system_account: %s
		resolver: MEMORY
		resolver_preload: { %s: %s, %s: %s }
	`, text(operatorClaims.Encode(operator)), systemID, accountID, accountToken, systemID, systemToken)}
}

// credentials writes the credentials file of a new user of the account, and returns its seed.
func (o *tenancy) credentials(t *testing.T) (file, seed string) {
	t.Helper()
	user := must[nkeys.KeyPair](t)(nkeys.CreateUser())
	claims := jwt.NewUserClaims(must[string](t)(user.PublicKey()))
	token := must[string](t)(claims.Encode(o.account))
	secret := must[[]byte](t)(user.Seed())
	file = filepath.Join(t.TempDir(), "nats.creds")
	if err := os.WriteFile(file, must[[]byte](t)(jwt.FormatUserConfig(token, secret)), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, string(secret)
}

// startGuarded starts a server with the given configuration.
func startGuarded(t *testing.T, config string, change func(*gatewaytest.Cluster)) *gatewaytest.Cluster {
	t.Helper()
	c := gatewaytest.NewCluster(t, 1)
	c.Config = config
	if change != nil {
		change(c)
	}
	c.Start(0)
	return c
}

// natsOptions returns the gateway's options with lines of the nats block.
func natsOptions(urls string, lines ...string) string {
	return fmt.Sprintf("engine nats %s {\nreplicas 1\n%s\n}\n%s", urls, strings.Join(lines, "\n"), gatewaytest.ToLocal)
}

func TestCredentialsFileOpensCluster(t *testing.T) {
	t.Parallel()
	site := gatewaytest.ExampleSite(t)
	o := newTenancy(t, true)
	file, seed := o.credentials(t)
	c := startGuarded(t, o.config, func(c *gatewaytest.Cluster) { c.Login = []nats.Option{nats.UserCredentials(file)} })
	c.Ready()
	t.Run("user of the account", func(t *testing.T) {
		g := gatewaytest.Start(t, natsOptions(c.URLs(), "credentials "+file), site)
		delivers(g)
		keepsSecret(g, seed)
	})
	t.Run("user of another account", func(t *testing.T) {
		stranger, seed := newTenancy(t, true).credentials(t)
		g := gatewaytest.New(t, natsOptions(c.URLs(), "credentials "+stranger), site)
		refuses(t, g, "Authorization Violation")
		keepsSecret(g, seed)
	})
	t.Run("missing file", func(t *testing.T) {
		g := gatewaytest.New(t, natsOptions(c.URLs(), "credentials /nowhere/nats.creds"), site)
		refuses(t, g, "/nowhere/nats.creds: no such file")
	})
	t.Run("truncated file", func(t *testing.T) {
		torn := filepath.Join(t.TempDir(), "nats.creds")
		if err := os.WriteFile(torn, []byte("planted-secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		g := gatewaytest.New(t, natsOptions(c.URLs(), "credentials "+torn), site)
		refuses(t, g, "connecting to NATS")
		keepsSecret(g, "planted-secret")
	})
}

func TestURLPasswordIsNeverShown(t *testing.T) {
	t.Parallel()
	const user, password = "planteduser", "plantedsecret"
	site := gatewaytest.ExampleSite(t)
	c := startGuarded(t, fmt.Sprintf("authorization { user: %s, password: %s }", user, password),
		func(c *gatewaytest.Cluster) { c.Login = []nats.Option{nats.UserInfo(user, password)} })
	c.Ready()
	at := strings.TrimPrefix(c.URLs(), "nats://")
	t.Run("in the Caddyfile", func(t *testing.T) {
		g := gatewaytest.Start(t, natsOptions("nats://"+user+":"+password+"@"+at), site)
		delivers(g)
		c.Kill(0)
		logs(g, "disconnected from NATS")
		c.Start(0)
		logs(g, "reconnected to NATS")
		keepsSecret(g, user, password)
	})
	t.Run("from the environment", func(t *testing.T) {
		g := gatewaytest.New(t, natsOptions("nats://{env.NATS_LOGIN}@"+at), site)
		g.Env = []string{"NATS_LOGIN=" + user + ":" + password}
		g.Start()
		delivers(g)
		if _, config, err := gatewaytest.Send(http.MethodGet, "http://"+g.Admin+"/config/", http.NoBody); err != nil ||
			strings.Contains(config, password) || !strings.Contains(config, "{env.NATS_LOGIN}") {
			t.Errorf("the configuration is %s %v", config, err)
		}
		keepsSecret(g, user, password)
	})
	t.Run("wrong password", func(t *testing.T) {
		g := gatewaytest.New(t, natsOptions("nats://"+user+":plantedwrong@"+at), site)
		refuses(t, g, "Authorization Violation")
		keepsSecret(g, user, "plantedwrong")
	})
	t.Run("unreachable server", func(t *testing.T) {
		g := gatewaytest.Start(t, natsOptions("nats://"+user+":"+password+"@127.0.0.1:1"), site)
		logs(g, "store not opened")
		g.Post("/", `{"callback_url":"http://127.0.0.1/"}`)
		keepsSecret(g, user, password)
	})
	t.Run("typing mistake", func(t *testing.T) {
		g := gatewaytest.New(t, natsOptions("nats://{env.NATS_LOGIN}@"+at), site)
		g.Env = []string{"NATS_LOGIN=" + user + ":planted%zzsecret"}
		doesNotStart(t, g, "expected URLs such as nats://host:4222")
		keepsSecret(g, user, "planted%zzsecret")
	})
}

// authority is a private CA with a server certificate, in files.
type authority struct{ ca, cert, key string }

func newAuthority(t *testing.T) authority {
	t.Helper()
	dir := t.TempDir()
	a := authority{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	write := func(file, kind string, der []byte) {
		var text bytes.Buffer
		if err := pem.Encode(&text, &pem.Block{Type: kind, Bytes: der}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := must[*ecdsa.PrivateKey](t)
	caKey, serverKey := key(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), key(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a private CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "n0"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der := must[[]byte](t)
	write(a.ca, "CERTIFICATE", der(x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)))
	write(a.cert, "CERTIFICATE", der(x509.CreateCertificate(rand.Reader, leaf, ca, serverKey.Public(), caKey)))
	write(a.key, "PRIVATE KEY", der(x509.MarshalPKCS8PrivateKey(serverKey)))
	return a
}

func TestClusterWithSystemCAIsTrusted(t *testing.T) {
	t.Parallel()
	site := gatewaytest.ExampleSite(t)
	a := newAuthority(t)
	c := startGuarded(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q }", a.cert, a.key), func(c *gatewaytest.Cluster) {
		c.Scheme = "tls"
		c.Login = []nats.Option{nats.RootCAs(a.ca), nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12})}
	})
	c.Ready()
	t.Run("trusted", func(t *testing.T) {
		g := gatewaytest.New(t, natsOptions(c.URLs()), site)
		g.Env = []string{"SSL_CERT_FILE=" + a.ca}
		g.Start()
		delivers(g)
	})
	t.Run("not trusted", func(t *testing.T) {
		refuses(t, gatewaytest.New(t, natsOptions(c.URLs()), site), "certificate signed by unknown authority")
	})
	t.Run("certificate of another name", func(t *testing.T) {
		g := gatewaytest.New(t, natsOptions(strings.Replace(c.URLs(), "127.0.0.1", "localhost", 1)), site)
		g.Env = []string{"SSL_CERT_FILE=" + a.ca}
		refuses(t, g, "certificate is not valid for any names, but wanted to match localhost")
	})
}
