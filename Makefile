# Every target runs in all modules of this repository. Only Go is assumed; the
# tools that a target needs are built once into .cache, at pinned versions.

GO ?= go

GOLANGCI_LINT_VERSION := v2.15.0
GOVULNCHECK_VERSION := v1.9.0
GOLANGCI_LINT := $(CURDIR)/.cache/bin/golangci-lint-$(GOLANGCI_LINT_VERSION)

MODULES := $(shell find . -name go.mod -not -path './.cache/*' -exec dirname {} ';' | sort)

# $(call each,command) runs the command in every module and stops at the first
# that fails.
each = set -e; for module in $(MODULES); do (cd $$module && $(1)); done

.DEFAULT_GOAL := help
.PHONY: help test matrix unit fuzz bench lint fmt tidy vuln ci

help: ## show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

test: ## run every test, against servers that it finds or starts
	$(GO) run ./internal/check

matrix: ## run the transports' suites against other versions of their servers (containers, or root on Debian)
	internal/matrix/matrix.sh

unit: ## run the tests that need no server; the others are skipped
	$(call each,$(GO) test ./...)

fuzz: ## run every fuzz target, each for a minute (FUZZTIME=10m for longer)
	internal/fuzz/fuzz.sh $(or $(FUZZTIME),1m)

bench: ## run the benchmarks
	$(GO) run ./internal/testservices -- $(GO) test -run '^$$' -bench . -benchmem ./bench/...

lint: $(GOLANGCI_LINT) ## check style, mistakes and who may import what
	$(call each,$(GOLANGCI_LINT) run --config $(CURDIR)/.golangci.yml ./...)

fmt: $(GOLANGCI_LINT) ## format the code
	$(call each,$(GOLANGCI_LINT) fmt --config $(CURDIR)/.golangci.yml ./...)

tidy: ## bring go.mod and go.sum up to date
	$(call each,$(GO) mod tidy)

vuln: ## look for known vulnerabilities in what the code calls (needs the network)
	$(call each,$(GO) run golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION) ./...)

ci: test lint ## what continuous integration runs

# Not a tool of go.mod: the linter's own dependencies would become this module's.
$(GOLANGCI_LINT):
	GOBIN=$(CURDIR)/.cache/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv $(CURDIR)/.cache/bin/golangci-lint $@
