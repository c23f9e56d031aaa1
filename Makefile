# make lab, make test, make lab-down: see README.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
hosts ?= 1
export PYTHONUNBUFFERED := 1
LABS := 0 1 2
N ?= 20
# Many of them wait, and those that do stand together: whoever is done takes from the others.
UNIT := $(BIN)/pytest -n 8 --dist worksteal tests/unit

# What the lab and the tests need of this machine (Debian 12 or 13, root).
APT_PACKAGES := binutils ca-certificates curl docker-registry dpkg-dev gnupg haproxy iproute2 kmod mmdebstrap nftables \
	openssh-client openssh-server python3-venv rsync systemd-container

# What `make lab` builds its hosts from.
LAB_SYSTEMS := debian-12 debian-13
OS_RELEASE ?= /etc/os-release

.PHONY: help install lab lab-machine lab-down lab-caches test checks soak audit bench bench-store score-diagnosis fit-table docs lint unit flake mutants apt-packages

help: ## This list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

# Apart from this checkout: nothing of it is needed afterwards.
install: ## Install the command rigup for this user, with uv, pipx or pip
	@if command -v uv >/dev/null; then uv tool install --quiet --reinstall --with-executables-from pyinfra .; \
	elif command -v pipx >/dev/null; then pipx install --force .; \
	else $(PYTHON) -m pip install --quiet --user . || \
		{ echo "make install: pip refuses. Install uv, or pipx (apt-get install pipx), and run it again"; exit 1; }; \
	fi
	@echo "rigup is installed. Next: rigup init DIR"

lab: apt-packages $(VENV)/.ready ## Build and boot the lab, deploy to it, audit it
	@$(BIN)/python -m lab tour --hosts $(hosts)

lab-down: $(VENV)/.ready ## Stop the lab and remove all it made; caches stay
	@$(BIN)/python -m lab down

# Three processes with a lab each: most of the time a deploy waits. The tests of a file share hosts, in their order.
# The status page is tested in a browser, which the lab does not need.
test: APT_PACKAGES += chromium
test: apt-packages $(VENV)/.ready ## Everything that proves the project
	@$(MAKE) --no-print-directory -j2 checks lab-caches
	$(BIN)/pytest --dist loadfile $(LABS:%=--tx popen//env:RIGUP_LAB=%) tests/lab

soak: apt-packages $(VENV)/.ready ## The long repetitions, and ten minutes of random input for every parser
	$(BIN)/pytest tests/unit/test_hostile_bytes.py --soak
	$(BIN)/pytest tests/lab --soak -m soak

# One after the other: each keeps all processors busy.
checks: lint docs
	@$(MAKE) --no-print-directory unit

# Made beside them, since it waits for the network half of the time.
lab-caches: $(VENV)/.ready
	@$(BIN)/python -m lab caches

unit: $(VENV)/.ready
	$(UNIT)

flake: $(VENV)/.ready ## The unit tests N times beside two busy loops; a restart goes on where it stopped
	@$(BIN)/python tools/flake.py $(N) -- $(UNIT)

mutants: $(VENV)/.ready ## Which of N small changes in what deletes, switches, connects and downloads the tests notice
	@$(BIN)/python -m tools.mutants $(N)

audit: $(VENV)/.ready ## Check the hosts of the inventory against their plan
	$(BIN)/pytest tests/audit

bench: apt-packages $(VENV)/.ready ## Measure deploy and audit beside stock pyinfra, Ansible and testinfra; the gateway in a flood
	@$(BIN)/python -m bench
	@$(BIN)/python -m bench.gateway

bench-store: apt-packages $(VENV)/.ready ## Measure downloads beside hf and curl, a fleet with peers, a cold deploy
	@$(BIN)/python -m bench.store

score-diagnosis: $(VENV)/.ready ## Measure how many public logs of failures the diagnosis explains
	@$(BIN)/python -m tools.score_diagnosis

fit-table: $(VENV)/.ready ## Compare the computed use of memory with what engines printed
	@$(BIN)/python -m tools.fit_table

docs: $(VENV)/.ready ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

lab-machine:
	@. $(OS_RELEASE); case " $(LAB_SYSTEMS) " in *" $$ID-$$VERSION_ID "*) ;; *) \
		echo "the lab needs Debian 12 or 13, and this is $$PRETTY_NAME; \`make install\` works here"; exit 1;; \
	esac
	@[ $$(id -u) = 0 ] || { echo "the lab needs root: it boots hosts with networks of their own"; exit 1; }

# Debian's docker-registry and haproxy start services of their own; the lab and the tests run them themselves.
apt-packages: lab-machine
	@missing=""; for p in $(APT_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing with apt:$$missing"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
		for s in docker-registry haproxy; do case "$$missing" in *$$s*) \
			if [ -d /run/systemd/system ]; then systemctl disable --quiet --now $$s; fi;; \
		esac; done; \
	fi

# Written last, so that an interrupted installation starts again.
$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rigup needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing the locked Python packages into $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
