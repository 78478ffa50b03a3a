# Every target sets up what it needs: the virtual environment with the locked dependencies, and uv if it is missing.
.DEFAULT_GOAL := help
SHELL := bash
PORT ?= 3000
KAFKA_PORT ?= 9092
UV := $(or $(shell command -v uv),.tools/bin/uv)
RUN := $(UV) run --frozen --no-sync
# A file's tests run one after another in one process, the files beside each other.
BESIDE := --numprocesses logical --maxprocesses 4 --dist loadfile
# What `make test-fast` leaves out (markers: see pyproject.toml).
NEEDING := kafka or postgresql or redis or weaviate or browser or kubernetes or slow
# Tests with threads, processes and servers, whose outcome a busy machine could change.
STRESS := tests/attacks/test_homes.py tests/attacks/test_kafka_partitions.py tests/attacks/test_killed_request.py \
	tests/attacks/test_processes.py tests/attacks/test_weaviate_killed.py tests/cli/test_dev.py tests/cli/test_drain.py \
	tests/core/test_prefetch.py tests/pipeline/generations/test_killed.py tests/pipeline/requests/test_drain.py \
	tests/pipeline/requests/test_held_content.py tests/pipeline/requests/test_killed.py tests/pipeline/test_outage.py \
	tests/providers tests/runs/test_graphql.py tests/runs/test_kafka_servers.py tests/state/test_callbacks.py \
	tests/stores/test_switching.py tests/supervision

export DAGSTER_DISABLE_TELEMETRY := yes
# Where it is set, every process compiles again all that it imports: seconds at each start.
unexport PYTHONDONTWRITEBYTECODE
# Threads of numpy and torch wait for each other by spinning: on cores that other tests use, several times the work.
test test-fast test-kubernetes coverage stress: export OMP_NUM_THREADS := 1

.PHONY: help setup demo demo-kafka dev check test-fast test coverage stress servers kafka chaos chaos-assessments chaos-keys
.PHONY: chaos-machines test-kubernetes test-containers real-files fuzz bench bench-gpu clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

.tools/bin/uv:
	python3 -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv

.venv/.synced: $(filter .tools/%,$(UV)) pyproject.toml uv.lock
	@$(UV) sync --frozen --all-extras --quiet
	@touch $@

setup: .venv/.synced ## make the virtual environment

demo: setup ## run the main job on the example corpus and search it
	@$(RUN) python examples/demo.py

demo-kafka: setup ## 1,000 texts by Kafka: a sensor launches a run, the result is searched
	@$(RUN) python -m examples.demo_kafka

dev: setup ## all of it on http://localhost:3000, Dagster's UI at /dagster, with its daemon (PORT=… for another)
	@$(if $(ALLOW_HOST),VECTORIZE_GATEWAY__HOSTS=$(ALLOW_HOST)) \
		$(RUN) vectorize serve --with-daemon --port $(PORT)

check: setup ## style, types, and which package may import which: seconds
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports

test-fast: setup ## the tests that need no server and no long time: a few minutes
	$(RUN) pytest $(BESIDE) -m "not ($(NEEDING))"

servers: setup ## the servers that tests run against: what is missing is built (minutes, once a machine) or named
	@$(RUN) python -m tests.servers.weaviate
	@$(RUN) python -m tests.servers.postgresql
	@$(RUN) python -m tests.servers.kafka
	@$(RUN) python -m tests.servers.redis
	@$(RUN) python -m tests.servers.browser
	@$(RUN) python -m tests.servers.packages

kafka: setup ## a real Kafka broker on localhost:9092 for development (KAFKA_PORT=… for another)
	@$(RUN) python -m tests.servers.kafka --serve $(KAFKA_PORT)

test: check servers ## everything that has to pass: check, and all tests but those on Kubernetes
	$(RUN) python -m tests.retry $(BESIDE) -m "not kubernetes"

test-kubernetes: servers ## as root: the Helm chart on a control plane of Kubernetes, which is built first (minutes, once a machine)
	@$(RUN) python -m tests.servers.kubernetes.programs
	$(RUN) pytest -m kubernetes

test-containers: setup ## as root on Debian: build the images of deploy/docker without an engine and try them (minutes, IMAGES="cpu cuda" IMAGE_FOLDER=/var/tmp/vectorize-images)
	$(RUN) python -m tests.deploy.image --folder $(or $(IMAGE_FOLDER),/var/tmp/vectorize-images) $(or $(IMAGES),cpu)

coverage: setup servers ## all tests, and which branches of the code they went through: half as long again as `make test`
	@rm -rf .coverage && mkdir .coverage
	$(RUN) coverage run -m pytest $(BESIDE) -m "not kubernetes"
	@$(RUN) coverage combine --quiet
	$(RUN) coverage report

stress: setup ## tests 20 times while every core is busy (TESTS="…" ROUNDS=20 KEEP_GOING=1)
	@$(RUN) python -m tests.stress --rounds $(or $(ROUNDS),20) $(if $(KEEP_GOING),--keep-going) $(or $(TESTS),$(STRESS))

chaos: setup ## kill runs over messages again and again, and count what is there afterwards (COUNT=50 SEED=0 MESSAGES=20000)
	@$(RUN) python -m tests.pipeline.requests.chaos --count $(or $(COUNT),50) --seed $(or $(SEED),0) --messages $(or $(MESSAGES),20000)

chaos-assessments: setup ## the same for runs from detections to risks (DETECTIONS=20000 KILLS=20 SEED=0)
	@$(RUN) python -m tests.pipeline.assessments.chaos --detections $(or $(DETECTIONS),20000) --kills $(or $(KILLS),20) --seed $(or $(SEED),0)

chaos-keys: setup ## 8 processes share 20 API keys and are killed: no limit exceeded, nearly all used (MINUTES=5 SECOND=1)
	@$(RUN) python -m tests.providers.key_chaos --minutes $(or $(MINUTES),5) --second $(or $(SECOND),1)

chaos-machines: setup ## as root: kill, stall and cut off machines that embed messages and files (MESSAGES=100000 FILES=20000 WORKERS=4 KILLS=18 SEED=0)
	@$(RUN) python -m tests.machines.chaos --messages $(or $(MESSAGES),100000) --files $(or $(FILES),20000) \
		--workers $(or $(WORKERS),4) --kills $(or $(KILLS),18) --seed $(or $(SEED),0)

real-files: setup ## parse thousands of real documents, hold their text against a second extractor (FOLDERS=/usr/share/doc EACH=300)
	@$(RUN) python -m tests.documents.real_files $(or $(FOLDERS),/usr/share/doc) --each $(or $(EACH),300)

fuzz: setup ## parse damaged documents: an error with a remedy, or nothing happened (FOLDERS=examples/corpus MINUTES=20 a format)
	@$(RUN) python -m tests.documents.fuzz $(or $(FOLDERS),examples/corpus) --minutes $(or $(MINUTES),20)

bench: setup ## measure (ONLY=memory for one figure): see benchmarks/README.md
	@$(RUN) python -m benchmarks.run $(ONLY)

bench-gpu: setup ## measure the engine torch on an NVIDIA GPU: see benchmarks/README.md
	@$(RUN) python -m benchmarks.gpu

clean: ## remove environment, caches and state
	rm -rf .venv .tools .vectorize .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage benchmarks/.peers benchmarks/.results
