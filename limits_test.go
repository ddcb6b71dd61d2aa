package callback_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// The Caddyfile parser refuses negative numbers, but JSON may contain them. A negative
// limit would refuse everything, or remove the limit.
func TestValidateJSONLimits(t *testing.T) {
	app := func(options string) string { return `{"apps":{"callback":{` + options + `}}}` }
	handler := func(options string) string {
		return `{"apps":{"http":{"servers":{"s":{"listen":["127.0.0.1:0"],"routes":[{"handle":[{"handler":"callback",` + options + `}]}]}}}}}`
	}
	poll := func(options string) string {
		return `{"apps":{"http":{"servers":{"s":{"listen":["127.0.0.1:0"],"routes":[{"handle":[{"handler":"task_queue","name":"q","routes":[],"poll":{` +
			options + `}}]}]}}}}}`
	}
	for _, tt := range []struct{ config, wrong string }{
		{app(`"retention":-1`), "retention: -1ns is negative"},
		{app(`"retention_count":-1`), "retention: -1 is negative"},
		{app(`"dead":-1`), "dead: -1ns is negative"},
		{app(`"dead_count":-1`), "dead: -1 is negative"},
		{app(`"engine":{"engine":"sqlite","sync":-1}`), "sync: -1ns is negative"},
		{app(`"engine":{"engine":"sqlite","max_size":-1}`), "max_size: -1 is less than"},
		{app(`"engine":{"engine":"nats","urls":["nats://c.example:4222"],"replicas":-1}`), "replicas: -1 is negative"},
		{app(`"queues":{"q":{"workers":-1}}`), "workers: -1 is less than 1"},
		{app(`"queues":{"q":{"attempts":-1}}`), "attempts: -1 is less than 1"},
		{app(`"queues":{"q":{"max_queued":-1}}`), "max_queued: -1 is less than 1"},
		{app(`"queues":{"q":{"max_delay":-1}}`), "max_delay: -1ns is negative"},
		{app(`"queues":{"q":{"max_delay":"3651d"}}`), "max_delay: 87624h0m0s is more than 3650 days"},
		{app(`"queues":{"q":{"retry_status":[-1]}}`), "-1 is not a status from 400 to 599"},
		{app(`"queues":{"q":{"retry_status":[399]}}`), "399 is not a status from 400 to 599"},
		{app(`"queues":{"q":{"retry_status":[600]}}`), "600 is not a status from 400 to 599"},
		{app(`"delivery":{"timeout":-1}`), "timeout: -1ns is negative"},
		{app(`"delivery":{"concurrency":-1}`), "concurrency: -1 is less than 1"},
		{app(`"delivery":{"per_host":-1}`), "per_host: -1 is less than 1"},
		{app(`"delivery":{"retry":[1000000000,-1]}`), "a wait of -1ns is not positive"},
		{app(`"delivery":{"retry":[0]}`), "a wait of 0s is not positive"},
		{app(`"delivery":{"derive_keys":"{http.auth.user.id}"}`), "there is no secret to derive keys from"},
		{handler(`"timeout":-1`), "timeout: -1ns is negative"},
		{handler(`"max_kept":1`), "max_kept need large_results link"},
		{handler(`"headers":[{"name":"x","value":"a\u0001"}]`), "the value of x contains a control character"},
		{handler(`"max_request":-1`), "max_request and max_result"},
		{handler(`"max_result":-1`), "max_request and max_result"},
		{handler(`"max_request":1099511627776`), "max_request and max_result"},
		{handler(`"max_result":1099511627776`), "max_request and max_result"},
		{handler(`"from_none":true`), "from none needs a URL"},
		{handler(`"from_header":"beam-task-id"`), "beam-task-id is set by the gateway"},
		{handler(`"task_header":"Host"`), "Host is set by the gateway"},
		{handler(`"profile":"beam2","task_header":"x-task-signature"`), "is set by the profile beam2"},
		{handler(`"profile":"openfaas","headers":[{"name":"x-function-status"}]`), "x-function-status is set by the gateway"},
		{handler(`"url":"{env.CALLBACK_TEST_UNSET}"`), "url: its placeholders expand to nothing"},
		{app(`"alert":"{env.CALLBACK_TEST_UNSET}"`), "alert: the placeholders of the URL expand to nothing"},
		{poll(`"interval":1`), "interval: 1ns is shorter than 10ms"},
		{poll(`"interval":-1`), "interval: -1ns is shorter than 10ms"},
		{poll(`"hosts":["*"]`), `hosts: "*" is not a host`},
		{poll(`"hosts":["x.example:99999"]`), `hosts: "x.example:99999" is not a host`},

		{poll(`"interval":10000000,"hosts":["x.example:65535","[2606::1]:443"]`), ""},
		{app(`"retention":1,"retention_count":1,"dead":1,"dead_count":1`), ""},
		{app(`"queues":{"q":{"workers":1,"attempts":1,"max_queued":1,"max_delay":"3650d","retry_status":[400,599]}}`), ""},
		{app(`"delivery":{"timeout":1,"concurrency":1,"per_host":1,"retry":[1]}`), ""},
		{app(`"delivery":{"retry":[]}`), ""},
		{handler(`"timeout":1,"max_request":1,"max_result":1`), ""},
	} {
		t.Run(tt.config, func(t *testing.T) {
			var config caddy.Config
			if err := json.Unmarshal([]byte(tt.config), &config); err != nil {
				t.Fatal(err)
			}
			switch err := caddy.Validate(&config); {
			case tt.wrong == "" && err != nil:
				t.Errorf("unexpected error: %v", err)
			case tt.wrong != "" && !strings.Contains(fmt.Sprint(err), tt.wrong):
				t.Errorf("the error is %v; expected %q in it", err, tt.wrong)
			}
		})
	}
}
