# What people do here. `make` alone lists it.
.DEFAULT_GOAL := help
TOOL := go tool -modfile=tools/go.mod

.PHONY: help run build test race lint vuln bench peers benchtrial microbench fuzz golden faults soak ci

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST)

run: ## run the example of the README
	go run ./cmd/caddy run --config Caddyfile.example

build: ## build Caddy with the module, ./caddy
	go build ./cmd/caddy

test: ## run the tests, with real gateways in processes of their own
	go test ./...

race: ## the same with the race detector
	go test -race ./...

lint: ## look for mistakes without running anything
	go vet ./...
	$(TOOL) golangci-lint run ./...

vuln: ## look for known vulnerabilities
	$(TOOL) govulncheck ./...

fuzz: ## fuzz every parser of foreign bytes, a minute each: make fuzz FUZZTIME=10m
	FUZZTIME=$(or $(FUZZTIME),1m) bash .ci/fuzz

bench: ## measure everything in 20 minutes, and write the tables and pictures of docs/performance.md and docs/internals
	cd bench && go run . -write

peers: build ## run one load against this gateway and the systems in PEERS
	cd bench && go run ./peers $(or $(PEERS),peers/systems.json)

benchtrial: ## try every measurement in a minute or two; the figures mean nothing
	cd bench && go run . -trial

microbench: ## run the benchmarks that stand beside the code
	go test -run "^$$" -bench . ./...

faults: ## make every fault many times and print what became of the tasks; takes half an hour
	bash .ci/faults

soak: ## run at 80 % of the machine's rate for an hour, and fail if anything grows: make soak SOAK=30m
	CALLBACK_SOAK=$(or $(SOAK),1h) CALLBACK_SOAK_CSV=$(CURDIR)/soak.csv go test -count=1 -v -timeout 24h ./integration/soak

golden: ## write the golden files of the Caddyfile anew; look at the diff
	go test . -run TestAdaptCaddyfiles -update

ci: ## everything that is checked before a change lands
	bash .ci/run
