package callback_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"
)

// badLines are lines of the Caddyfile with a bad value, by the block that they are in.
// The block has %s in the place of the line. Every option has at least one bad value.
var badLines = []struct {
	name, block string
	lines       []string
}{
	{"options", "{\n\tcallback {\n\t\t%s\n\t}\n}\n", []string{
		`engine`, `engine sqlight`, `engine sqlite a b`, `engine nats`, `engine nats http://a:4222`, `engine sqlite ""`,
		`retention`, `retention 0`, `retention -1h`, `retention 1h 0`, `retention 1h many`, `retention 1h 2 3`, `retention 300000000h`,
		`dead`, `dead soon`, `dead 1h -1`, `keep_results`, `keep_results yes`, `keep_results on off`,
		`alert`, `alert c.example`, `alert ftp://c.example`, `alert ""`, `alert https://a:b@c.example`,
		`queue`, `queue a.b`, `queue ""`, `queue a b`, `delivery on`, `store x`, `sync 1s`, `nats nats://a`,
	}},
	{"engine sqlite", "{\n\tcallback {\n\t\tengine sqlite {\n\t\t\t%s\n\t\t}\n\t}\n}\n", []string{
		`sync`, `sync never`, `sync 0`, `sync -1s`, `sync 1s 2s`, `max_size`, `max_size 1`, `max_size big`, `max_size 63MiB`, `max_size 20EB`,
	}},
	{"engine nats", "{\n\tcallback {\n\t\tengine nats nats://a:4222 {\n\t\t\t%s\n\t\t}\n\t}\n}\n", []string{
		`credentials`, `credentials ""`, `credentials a b`, `replicas 0`, `replicas x`, `replicas 3.5`, `replicas -1`,
	}},
	{"queue", "{\n\tcallback {\n\t\tqueue q {\n\t\t\t%s\n\t\t}\n\t}\n}\n", []string{
		`workers`, `workers 0`, `workers -1`, `workers 1.5`, `workers 1 2`, `attempts 0`, `attempts 3 200`, `attempts 3 x`,
		`max_queued 0`, `max_queued 99999999999999999999`, `rate 1`, `rate 1/0s`, `rate 0/1s`, `rate 99999999/1s`, `rate ""`, `rate 1/1s 2/1s`,
		`max_delay 0`, `max_delay -1s`, `max_delay 4000d`, `max_delay 200000000d`, `max_delay forever`,
		`idempotency_scope`, `idempotency_scope ""`, `schedule`, `schedule ""`, `schedule nonsense`, `schedule "61 * * * *"`, `schedule "0 0 30 2 *"`,
		`schedule "@every 1ms"`, `schedule @daily Nowhere/Land`, `schedule @daily Local`, `schedule 0 0 1 1 *`,
	}},
	{"schedule", "{\n\tcallback {\n\t\tqueue q {\n\t\t\tschedule @daily {\n\t\t\t\t%s\n\t\t\t}\n\t\t}\n\t}\n}\n", []string{
		`method`, `method ""`, `method "A B"`, `method (`, `uri`, `uri ""`, `uri run`, `uri http://a/b`, `uri /a /b`, `uri "/a b%zz"`,
		`header X`, `header "X Y" z`, `header "" z`, `header X "a` + "\x01" + `b"`, `header X y z`, `body`, `body ""`, `body a b`,
	}},
	{"delivery", "{\n\tcallback {\n\t\tdelivery {\n\t\t\t%s\n\t\t}\n\t}\n}\n", []string{
		`timeout`, `timeout 0`, `timeout -5s`, `timeout 10`, `timeout 5s 6s`, `retry`, `retry 5s never`, `retry 0`, `secret`, `secret short`, `secret whsec_!`, `secret ""`,
		`derive_keys`, `derive_keys x`, `derive_keys ""`, `derive_keys {http.auth.user.id}`, `allow`, `allow 10.0.0.0/99`, `allow ""`, `allow http://a`, `deny`, `deny 1.2.3.4/x`,
		`ports`, `ports 0`, `ports 65536`, `ports https`, `ports ""`, `trusted_ca`, `trusted_ca ""`, `concurrency 0`, `concurrency x`, `slow 0`, `per_host 0`, `per_host -3`,
		`rate 0/1s`, `rate many`, `rate 10`, `pause_after`, `pause_after 0`, `pause_after -1h`, `pause_after {x}`,
	}},
	{"callback", ":80 {\n\tcallback {\n\t\t%s\n\t}\n}\n", callbackLines},
	{"callback of a queue", ":80 {\n\ttask_queue /q q {\n\t\tcallback {\n\t\t\t%s\n\t\t}\n\t\trespond ok\n\t}\n}\n", callbackLines},
	{"poll", ":80 {\n\ttask_queue /q q {\n\t\tpoll {\n\t\t\t%s\n\t\t}\n\t\trespond ok\n\t}\n}\n", []string{
		`location`, `location header`, `location header ""`, `location header "a b"`, `location json`, `location json ""`, `location body x`, `location json a b`,
		`result`, `result json ""`, `result header ""`, `result header "ä"`,
		`pending`, `pending status`, `pending status 199`, `pending status 500`, `pending status x`, `pending json a`, `pending json "" running`,
		`failed`, `failed status 400`, `failed json`, `failed json "" error`,
		`interval`, `interval 0`, `interval -1s`, `interval 1ms`, `interval 2s 1s`, `interval 1s 2s 3s`,
		`hosts`, `hosts ""`, `hosts *.example`, `hosts http://a`, `hosts a:99999`, `hosts a/b`, `keep_headers`, `keep_headers ""`, `keep_headers "a b"`,
	}},
	{"callback_inbox", ":80 {\n\tcallback_inbox /i {\n\t\t%s\n\t}\n}\n", []string{
		`keep`, `keep 0`, `keep x`, `secret`, `secret x`, `secret ""`, `respond`, `respond 99`, `respond 600`, `respond ok`,
		`forward_to`, `forward_to ""`, `forward_to a`, `forward_to http://a/path`, `forward_to ftp://a`,
	}},
	{"task_queue", ":80 {\n\ttask_queue /q q {\n\t\t%s\n\t\trespond ok\n\t}\n}\n", []string{
		`callback c.example`, `callback a b`, `callback off off`, `callback ""`, `profile`, `profile x`, `profile openfaas beam2`, `poll 2s`,
	}},
	{"site", ":80 {\n\t%s\n}\n", []string{
		`callback c.example`, `callback ""`, `callback off`, `callback https://u:p@c.example/`, `callback https://a https://b`, `task_queue`, `task_queue /q`, `task_queue /q "a b" {`,
		`task_status /t x`, `task_dashboard /d x`, `callback_inbox /i x`, `nonsense`,
	}},
}

var callbackLines = []string{
	`profile`, `profile x`, `timeout`, `timeout 0`, `timeout -1s`, `timeout 1`, `field`, `field ""`, `field a b`, `from`, `from header`, `from header ""`, `from header "a b"`,
	`from body`, `from none`, `from header webhook-id`, `format`, `format xml`, `task_header`, `task_header ""`, `task_header "a b"`, `task_header webhook-id`,
	`status_header ""`, `status_header content-type`, `header X`, `header "" x`, `header "a b" c`, `header webhook-id x`, "header X \"a\x01b\"",
	`max_request`, `max_request 0`, `max_request -1`, `max_request 2GiB`, `max_result 0`, `max_result x`, `max_result 1TiB`,
	`large_results`, `large_results file`, `large_results link x`, `large_results link ""`, `large_results link https://a?b`, `large_results link https://a https://b`,
	`max_kept`, `max_kept 0`, `max_kept 2TiB`, `max_kept 1GiB`,
}

// TestBadValuesNameTheirLine checks that a bad value is found when the Caddyfile is
// adapted, and not later, when its line is no longer known.
func TestBadValuesNameTheirLine(t *testing.T) {
	t.Parallel()
	for _, c := range badLines {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, line := range c.lines {
				err := adaptError(fmt.Sprintf(c.block, line))
				if err == nil {
					t.Errorf("%s: accepted", line)
					continue
				}
				// The error of a bad combination names the line of the directive.
				before, _, _ := strings.Cut(c.block, "%s")
				at := strings.Count(before, "\n") + 1
				if !regexp.MustCompile(fmt.Sprintf(`\bCaddyfile:(%d|%d)\b`, at-1, at)).MatchString(err.Error()) {
					t.Errorf("%s: the error does not name line %d: %v", line, at, err)
				}
			}
			for _, option := range optionsOf(c.block) {
				if !slices.ContainsFunc(c.lines, func(line string) bool { return strings.Fields(line)[0] == option }) {
					t.Errorf("no bad value of %s is tested", option)
				}
			}
		})
	}
}

func adaptError(config string) error {
	_, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(config), map[string]any{"filename": "Caddyfile"})
	return err
}

// optionsOf returns the options of a block, which the error of an unknown one lists.
func optionsOf(block string) []string {
	err := adaptError(fmt.Sprintf(block, "no_such_option"))
	if err == nil {
		return nil
	}
	_, list, found := strings.Cut(err.Error(), "unknown option \"no_such_option\"; expected one of ")
	if !found {
		return nil
	}
	list, _, _ = strings.Cut(list, ", at Caddyfile")
	return strings.Split(list, ", ")
}
