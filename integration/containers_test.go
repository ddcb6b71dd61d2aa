package integration

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.yaml.in/yaml/v3"
)

// goVersion is the version of Go in go.mod.
var goVersion = regexp.MustCompile(`(?m)^go (\S+)$`)

func TestDockerfileBuildsFromCheckout(t *testing.T) {
	t.Parallel()
	// A line that ends with a backslash continues on the next.
	text := strings.ReplaceAll(read(t, "examples/docker/Dockerfile"), "\\\n", "")
	ignored := strings.Fields(read(t, "examples/docker/Dockerfile.dockerignore"))
	known := []string{
		"FROM", "WORKDIR", "COPY", "RUN", "ENV", "VOLUME", "USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD",
	}
	seen := make(map[string]string)
	var stages []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if !slices.Contains(known, words[0]) {
			t.Errorf("%s is not an instruction", words[0])
		}
		seen[words[0]] = strings.TrimSpace(strings.TrimPrefix(line, words[0]))
		switch words[0] {
		case "FROM":
			image, tag, _ := strings.Cut(words[1], ":")
			if want := goVersion.FindStringSubmatch(read(t, "go.mod"))[1]; image == "golang" && tag != want+"-alpine" {
				t.Errorf("the image builds with Go %s, go.mod requires %s", tag, want)
			}
			if tag == "" || tag == "latest" {
				t.Errorf("%s has no version", words[1])
			}
			if len(words) == 4 {
				stages = append(stages, words[3])
			}
		case "COPY":
			from, isStage := strings.CutPrefix(words[1], "--from=")
			if isStage && !slices.Contains(stages, from) {
				t.Errorf("stage %s does not exist", from)
			}
			for _, source := range words[1 : len(words)-1] {
				if _, err := os.Stat(filepath.Join("..", source)); !isStage && (err != nil || slices.Contains(ignored, source)) {
					t.Errorf("COPY %s: it is not in the checkout, or ignored: %v", source, err)
				}
			}
		case "RUN":
			if _, built, ok := strings.Cut(line, "go build "); ok {
				words := strings.Fields(built)
				if _, err := os.Stat(filepath.Join("..", words[len(words)-1], "main.go")); err != nil {
					t.Error(err)
				}
			}
		}
	}
	if seen["USER"] != "caddy" || seen["STOPSIGNAL"] != "SIGTERM" || !strings.Contains(seen["VOLUME"], "/data") {
		t.Errorf("it runs as %s, ends on %s, keeps %s", seen["USER"], seen["STOPSIGNAL"], seen["VOLUME"])
	}
	var args []string
	if err := yaml.Unmarshal([]byte(seen["CMD"]), &args); err != nil {
		t.Fatal(err)
	}
	checkFlags(t, block{page: "examples/docker/Dockerfile"}, "caddy "+strings.Join(args, " "))
}

// natsVersion is the version of the NATS server in the tests.
var natsVersion = regexp.MustCompile(`(?m)^\tgithub.com/nats-io/nats-server/v2 v(\S+)$`)

// validNATS checks the configuration of the servers of a cluster, and that their image
// has the tested version. It returns the hosts of their routes.
func validNATS(t *testing.T, config, image string, names []string) {
	t.Helper()
	if want := "nats:" + natsVersion.FindStringSubmatch(read(t, "go.mod"))[1] + "-alpine"; image != want {
		t.Errorf("the image is %s, want %s", image, want)
	}
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		t.Setenv("NATS_NAME", name)
		opts, err := server.ProcessConfigFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if opts.ServerName != name || !opts.JetStream || opts.StoreDir != "/data" || opts.Port != 4222 || opts.HTTPPort != 8222 ||
			opts.Cluster.Name == "" || len(opts.Routes) != len(names) {
			t.Errorf("%s is %+v", name, opts)
		}
	}
}

// service is a service of compose.yaml.
type service struct {
	Image       string
	Environment map[string]string
	DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
	Command     []string
	Volumes     []string
	Ports       []string
	Networks    []string
	StopGrace   time.Duration `yaml:"stop_grace_period"`
	Healthcheck struct{ Test []string }
	Build       struct{ Context, Dockerfile string }
}

func TestComposeHasTwoGatewaysAndThreeServers(t *testing.T) {
	const dir = "examples/docker"
	var compose struct {
		Services map[string]service
		Volumes  map[string]any
		Networks map[string]any
	}
	if err := yaml.Unmarshal([]byte(read(t, dir+"/compose.yaml")), &compose); err != nil {
		t.Fatal(err)
	}
	caddyfile := read(t, dir+"/gateway/Caddyfile")
	var gateways, servers []string
	volumes := make(map[string]bool)
	for name, s := range compose.Services {
		if len(s.Healthcheck.Test) == 0 {
			t.Errorf("%s has no health check", name)
		}
		for _, network := range s.Networks {
			if _, ok := compose.Networks[network]; !ok && network != "default" {
				t.Errorf("%s: network %s does not exist", name, network)
			}
		}
		for _, volume := range s.Volumes {
			source, _, _ := strings.Cut(volume, ":")
			if strings.HasPrefix(source, ".") {
				if _, err := os.Stat(filepath.Join("..", dir, source)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			if _, ok := compose.Volumes[source]; !ok || volumes[source] {
				t.Errorf("%s: the volume %s is missing, or another's", name, source)
			}
			volumes[source] = true
		}
		switch {
		case strings.HasPrefix(s.Image, "nats:"):
			servers = append(servers, name)
			if s.Environment["NATS_NAME"] != name || !strings.Contains(caddyfile, "nats://"+name+":4222") {
				t.Errorf("%s is called %s, but the gateways' options do not name it", name, s.Environment["NATS_NAME"])
			}
		default:
			gateways = append(gateways, name)
			if _, err := os.Stat(filepath.Join("..", dir, s.Build.Context, s.Build.Dockerfile)); err != nil {
				t.Error(err)
			}
			if health := s.Healthcheck.Test[len(s.Healthcheck.Test)-1]; health != "http://127.0.0.1:2015/" || !strings.Contains(caddyfile, "\n:2015 {") {
				t.Errorf("the health of %s is asked at %s", name, health)
			}
			validCaddyfile(t, caddyfile, s.StopGrace)
		}
	}
	if len(gateways) != 2 || len(servers) != 3 || len(volumes) != 5 {
		t.Fatalf("%v and %v have the volumes %v", gateways, servers, volumes)
	}
	for _, gateway := range gateways {
		for _, name := range servers {
			if compose.Services[gateway].DependsOn[name].Condition != "service_healthy" {
				t.Errorf("%s does not wait for %s", gateway, name)
			}
		}
	}
	validNATS(t, read(t, dir+"/nats/nats.conf"), compose.Services[servers[0]].Image, servers)
}

// manifest has the tested fields of a Kubernetes object.
type manifest struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name string }
	Data       map[string]string
	Spec       struct {
		Replicas    int
		ServiceName string `yaml:"serviceName"`
		Selector    any
		Template    struct {
			Metadata struct{ Labels map[string]string }
			Spec     podSpec
		}
		VolumeClaimTemplates []struct{ Metadata struct{ Name string } } `yaml:"volumeClaimTemplates"`
	}
}

type podSpec struct {
	Grace      int `yaml:"terminationGracePeriodSeconds"`
	Containers []struct {
		Image  string
		Ports  []struct{ Name string }
		Mounts []struct{ Name string } `yaml:"volumeMounts"`
		Ready  *probe                  `yaml:"readinessProbe"`
		Live   *probe                  `yaml:"livenessProbe"`
	}
	Volumes []struct {
		Name      string
		ConfigMap struct{ Name string } `yaml:"configMap"`
	}
}

type probe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

// manifests reads the objects of a file, by kind.
func manifests(t *testing.T, file string) map[string]manifest {
	t.Helper()
	all := make(map[string]manifest)
	decoder := yaml.NewDecoder(strings.NewReader(read(t, file)))
	for {
		var m manifest
		err := decoder.Decode(&m)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if m.APIVersion == "" || m.Kind == "" || m.Metadata.Name == "" || all[m.Kind].Kind != "" {
			t.Errorf("%s: %s %s %q", file, m.APIVersion, m.Kind, m.Metadata.Name)
		}
		all[m.Kind] = m
	}
}

func TestKubernetesManifestsFitTogether(t *testing.T) {
	for file, test := range map[string]struct {
		kind, config string
		replicas     int
		volume       bool
	}{
		"embedded.yaml": {"StatefulSet", "Caddyfile", 1, true},
		"cluster.yaml":  {"Deployment", "Caddyfile", 2, false},
		"nats.yaml":     {"StatefulSet", "nats.conf", 3, true},
	} {
		t.Run(file, func(t *testing.T) {
			all := manifests(t, "examples/kubernetes/"+file)
			set, config, svc := all[test.kind], all["ConfigMap"], all["Service"]
			pod := set.Spec.Template.Spec
			if set.Spec.Replicas != test.replicas || (len(set.Spec.VolumeClaimTemplates) == 1) != test.volume || len(pod.Containers) != 1 {
				t.Fatalf("the %s is %+v", test.kind, set)
			}
			if test.volume && set.Spec.ServiceName != svc.Metadata.Name {
				t.Errorf("its service is %s, want %s", set.Spec.ServiceName, svc.Metadata.Name)
			}
			app := set.Spec.Template.Metadata.Labels["app.kubernetes.io/name"]
			selects := fmt.Sprint(map[string]any{"app.kubernetes.io/name": app})
			if app == "" || fmt.Sprint(svc.Spec.Selector) != selects || fmt.Sprint(set.Spec.Selector) != fmt.Sprint(map[string]any{"matchLabels": map[string]any{"app.kubernetes.io/name": app}}) {
				t.Errorf("the pods are %s; %v and %v are looked for", app, svc.Spec.Selector, set.Spec.Selector)
			}
			var volumes []string
			for _, v := range pod.Volumes {
				volumes = append(volumes, v.Name)
				if v.Name == "config" && v.ConfigMap.Name != config.Metadata.Name {
					t.Errorf("the configuration is %s, want %s", v.ConfigMap.Name, config.Metadata.Name)
				}
			}
			for _, v := range set.Spec.VolumeClaimTemplates {
				volumes = append(volumes, v.Metadata.Name)
			}
			c := pod.Containers[0]
			for _, mount := range c.Mounts {
				if !slices.Contains(volumes, mount.Name) {
					t.Errorf("volume %s does not exist", mount.Name)
				}
			}
			for _, p := range []*probe{c.Ready, c.Live} {
				if p == nil || !slices.ContainsFunc(c.Ports, func(port struct{ Name string }) bool { return port.Name == p.HTTPGet.Port }) {
					t.Errorf("a probe is missing, or asks a port that is not there: %+v", p)
				}
			}
			if test.config == "Caddyfile" {
				// preStop delays the signal.
				validCaddyfile(t, config.Data["Caddyfile"], time.Duration(pod.Grace-5)*time.Second)
				return
			}
			var names []string
			for i := range test.replicas {
				names = append(names, fmt.Sprintf("%s-%d", set.Metadata.Name, i))
				if host := names[i] + "." + svc.Metadata.Name + ":"; !strings.Contains(config.Data["nats.conf"], host) ||
					!strings.Contains(read(t, "examples/kubernetes/cluster.yaml"), host) {
					t.Errorf("no service has the host name %s", host)
				}
			}
			validNATS(t, config.Data["nats.conf"], c.Image, names)
		})
	}
}
