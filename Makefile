# Every target sets up what it needs: the virtual environment with the locked dependencies, and uv if it is missing.
.DEFAULT_GOAL := help
SHELL := bash
PORT ?= 3000
KAFKA_PORT ?= 9092
UV := $(or $(shell command -v uv),.tools/bin/uv)
RUN := $(UV) run --frozen --no-sync

export DAGSTER_DISABLE_TELEMETRY := yes
# Where it is set, every process compiles again all that it imports: seconds at each start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo demo-kafka dev test lint servers kafka chaos bench bench-gpu clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

.tools/bin/uv:
	python3 -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv

.venv/.synced: $(filter .tools/%,$(UV)) pyproject.toml uv.lock
	@$(UV) sync --frozen --quiet
	@touch $@

setup: .venv/.synced ## make the virtual environment

demo: setup ## run the main job on the example corpus and search it
	@$(RUN) python examples/demo.py

demo-kafka: setup ## 1,000 texts by Kafka: a sensor launches a run, the result is searched
	@$(RUN) python -m examples.demo_kafka

dev: setup ## Dagster's UI and daemon on http://localhost:3000 (PORT=… for another)
	@$(RUN) python -m vectorize_pipelines.dev --port $(PORT)

lint: setup ## style and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

servers: setup ## the servers that tests run against: what is missing is built (minutes, once a machine) or named
	@$(RUN) python -m tests.servers.weaviate
	@$(RUN) python -m tests.servers.postgresql
	@$(RUN) python -m tests.servers.kafka

kafka: setup ## a real Kafka broker on localhost:9092 for development (KAFKA_PORT=… for another)
	@$(RUN) python -m tests.servers.kafka --serve $(KAFKA_PORT)

test: lint servers ## everything that has to pass: lint, types, definitions, tests
	$(RUN) pytest --numprocesses logical --maxprocesses 4 --dist loadfile

chaos: setup ## kill runs over messages again and again, and count what is there afterwards (COUNT=50 SEED=0 MESSAGES=20000)
	@$(RUN) python -m tests.requests.chaos --count $(or $(COUNT),50) --seed $(or $(SEED),0) --messages $(or $(MESSAGES),20000)

bench: setup ## measure (ONLY=memory for one figure): see benchmarks/README.md
	@$(RUN) python -m benchmarks.run $(ONLY)

bench-gpu: setup ## measure the engine torch on an NVIDIA GPU: see benchmarks/README.md
	@$(RUN) python -m benchmarks.gpu

clean: ## remove environment, caches and state
	rm -rf .venv .tools .vectorize .pytest_cache .mypy_cache .ruff_cache .hypothesis benchmarks/.peers benchmarks/.results
