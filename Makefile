# `make help` lists the targets; PYTHON names the interpreter that builds .venv.
PYTHON ?= python3
BIN := .venv/bin
RUN := MPLBACKEND=Agg $(BIN)/python
STAMP := .venv/.installed
MYPY = $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir ../mypy
# The package as a wheel has it, with models, guides and kernels inside: for what reads its files.
AS_INSTALLED = @rm -rf out/typed && mkdir -p out/typed/pyro_memory && ln -s $(CURDIR)/pyro_memory/* $(CURDIR)/models $(CURDIR)/guides $(CURDIR)/kernels out/typed/pyro_memory/
EXPERIMENTS := benchmarks/experiments
# torch's threads sleep where they wait for each other: a busy neighbour then costs its share and no more.
export OMP_WAIT_POLICY ?= PASSIVE
# The GPU targets install nothing: any Python that has torch, triton, numpy and matplotlib will do.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_READY = @$(GPU_PYTHON) -c 'import matplotlib, numpy, torch, triton' || { echo "make $@ GPU_PYTHON=/path/to/a/python that has torch, triton, numpy and matplotlib"; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help install demo test fuzz faults load gpu gpu-profile gpu-ahead test-gpu results gallery docs browse bench lint format examples wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with the package (editable), its tests and tools

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not a program here: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, this is {v.major}.{v.minor}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: install ## train an addressed VAE on glyphs; bounds, information gain, a figure in out/demo
	$(RUN) examples/addressed_vae.py --out out/demo

test: install ## run the tests
	$(RUN) -m pytest -n 2 -q

fuzz: install ## call every public function with arguments drawn at random, FUZZ (20000) of them
	FUZZ=$(or $(FUZZ),20000) $(RUN) -m pytest -q tests/fuzz

faults: install ## kill, starve and damage small runs (half an hour); goes on where it stopped; rebuilds its table in docs
	$(RUN) benchmarks/faults.py

load: install ## time steps beside busy processes (a quarter of an hour, quiet machine); rebuilds its table in docs
	$(RUN) benchmarks/load.py --out docs/data
	$(RUN) $(EXPERIMENTS)/results.py --tables

gpu: ## check and time the kernels on a GPU, then train, in MINUTES (7): rows.csv and table.txt in OUT (out/gpu)
	$(GPU_READY)
	$(GPU_PYTHON) benchmarks/kernels_gpu.py --minutes $(or $(MINUTES),7) --out $(or $(OUT),out/gpu)

gpu-profile: ## profile the kernels and look for races on a GPU, where ncu and compute-sanitizer are
	$(GPU_READY)
	$(GPU_PYTHON) benchmarks/kernels_profile.py --out $(or $(OUT),out/gpu_profile)

gpu-ahead: ## compile the kernels for a GPU that is not here: carried/triton.tar.xz, which make gpu takes
	$(GPU_READY)
	$(GPU_PYTHON) benchmarks/kernels_ahead.py --into carried/triton.tar.xz

test-gpu: ## run the kernels' tests on a GPU, at larger shapes and in all dtypes (tens of minutes)
	$(GPU_READY)
	$(GPU_PYTHON) benchmarks/bare.py tests/kernels/*/test_triton_*.py tests/kernels/memory/test_limits.py tests/kernels/scan tests/kernels/test_triton_parts.py tests/kernels/test_checks.py

results: install ## run the recipes of up to MINUTES (15) and rebuild the tables of docs from what they leave
	$(RUN) $(EXPERIMENTS)/results.py --minutes $(or $(MINUTES),15)

gallery: install ## draw docs/gallery.md anew from the shipped weights
	$(RUN) $(EXPERIMENTS)/results.py --only gallery_letters gallery_drawn gallery_sets gallery_surprise gallery_forecasts --fresh

docs: install ## run the tutorials and build the site in out/site, which needs no server and no network
	$(AS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict -q
	@echo "open out/site/index.html"

browse: docs ## look at every page of the site, and search it, in a headless Chromium (BROWSER)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check playwright
	$(BIN)/python docs/_site/browse.py --browser $(or $(BROWSER),/usr/bin/chromium)

bench: install ## run the CPU benchmarks (tens of minutes): CSV, JSON and figures in out
	$(RUN) benchmarks/step_cost.py
	$(RUN) benchmarks/training_speed.py
	$(RUN) benchmarks/bases.py
	$(RUN) benchmarks/addressed.py
	$(RUN) benchmarks/estimators.py
	$(RUN) benchmarks/neural_memory_cpu.py --out out/neural_memory_cpu
	$(RUN) benchmarks/mixers_cpu.py
	$(RUN) benchmarks/addressing.py
	$(RUN) benchmarks/depth.py
	$(RUN) benchmarks/streamed.py
	$(RUN) benchmarks/compiled.py
	$(RUN) benchmarks/conversion.py
	$(RUN) benchmarks/calibration.py

lint: install ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(AS_INSTALLED)
	cd out/typed && $(MYPY) -p pyro_memory
	cd out/typed && $(MYPY) $(CURDIR)/tests/typed_user.py

format: install ## rewrite to style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

examples: install ## run every example and every experiment at a few steps
	$(RUN) examples/addressed_vae.py --steps 20 --targets 16 --particles 20 --out out/examples/addressed_vae
	$(RUN) examples/compose.py --steps 50 --out out/examples/compose
	$(RUN) examples/attend_infer_repeat.py --steps 10 --out out/examples/attend_infer_repeat
	$(RUN) examples/episodic_semantic.py --targets 20 --particles 4 --out out/examples/episodic_semantic
	$(RUN) examples/lifetime.py --steps 40 --particles 2 --out out/examples/lifetime
	$(RUN) examples/titans_recall.py --steps 4 --sequences 8 --out out/examples/titans_recall
	$(RUN) examples/cached_memory.py --sequences 2 --out out/examples/cached_memory
	$(RUN) examples/surprise.py --write 50 --out out/examples/surprise
	$(RUN) examples/diagnose.py --targets 16 --particles 10 --many 16 --out out/examples/diagnose
	$(RUN) $(EXPERIMENTS)/vma_fewshot.py --steps 20 --evaluate 16 --particles 20 --out out/examples/fewshot
	$(RUN) $(EXPERIMENTS)/vma_fewshot.py --base autoregressive --address enumerated --shots 1 2 --unread 0.1 --maps 8 --layers 1 1 --looks 1 --steps 10 --evaluate 8 --sets 2 --out out/examples/fewshot_autoregressive
	$(RUN) $(EXPERIMENTS)/vma_attention.py --maps 8 --layers 1 1 --looks 1 --steps 5 --attended-steps 5 --evaluate 8 --test-classes 1 2 --test-shots 1 4 --cost 1 10 --out out/examples/attention
	$(RUN) $(EXPERIMENTS)/vma_fewshot.py --base diffusion --lookup vma-omniglot28 --steps 10 --evaluate 8 --particles 2 --out out/examples/fewshot_diffusion
	$(RUN) $(EXPERIMENTS)/vma_recall.py --steps 20 --soft-attention --out out/examples/recall
	$(RUN) $(EXPERIMENTS)/vma_templates.py --steps 20 --evaluate 20 --particles 10 --slots 8 64 --out out/examples/templates
	$(RUN) $(EXPERIMENTS)/vma_large.py --steps 5 --slots 2000 --evaluate 8 --particles 10 --out out/examples/large
	$(RUN) $(EXPERIMENTS)/vsm_fewshot.py --steps 20 --recognition 10 --evaluate 20 --particles 4 --classifier-steps 20 --out out/examples/vsm
	$(RUN) $(EXPERIMENTS)/vsm_fewshot.py --base diffusion --steps 10 --recognition 10 --evaluate 20 --particles 2 --out out/examples/vsm_diffusion
	$(RUN) $(EXPERIMENTS)/vsm_fewshot.py --pretrained vsm-vae-omniglot --evaluate 20 --particles 4 --out out/examples/vsm_pretrained
	$(RUN) $(EXPERIMENTS)/vsm_fewshot.py --base hierarchical --memory none --steps 10 --evaluate 20 --out out/examples/vsm_none
	$(RUN) $(EXPERIMENTS)/vsm_drawings.py --steps 4 --recognition 10 --lookup 4 --maps 8 --recall-channels 8 16 --hidden 32 --evaluate 20 --particles 2 --judged 4 --ways 2 --classifier-steps 20 --out out/examples/vsm_drawings
	$(RUN) $(EXPERIMENTS)/vsm_returning.py --steps 6 --recognition 10 --recall-channels 8 16 --hidden 32 --channels 8 16 --lived 20 --present 6 --sizes 16 --kept 0 1 --evaluate 20 --particles 2 --out out/examples/vsm_returning
	$(RUN) $(EXPERIMENTS)/vsm_stream.py --steps 10 --recognition 10 --stages 3 --evaluate 10 --particles 4 --out out/examples/vsm_stream
	$(RUN) $(EXPERIMENTS)/titans_addressing.py --steps 20 --evaluate 16 --out out/examples/addressing
	$(RUN) $(EXPERIMENTS)/titans_recall.py --steps 4 --evaluate 8 --batch 8 --out out/examples/recall_lengths
	$(RUN) $(EXPERIMENTS)/titans_ladder.py --pairs 2 4 --steps 2 2 --tokens 128 --evaluate 4 --out out/examples/ladder
	$(RUN) $(EXPERIMENTS)/titans_cached.py --pairs 8 --length 64 --vocabulary 64 --steps 8 --lookup-steps 2 --evaluate 8 --out out/examples/cached
	$(RUN) $(EXPERIMENTS)/titans_cached_needles.py --steps 4 --evaluate 4 --factors 1 4 --out out/examples/cached_needles
	$(RUN) $(EXPERIMENTS)/titans_needles.py --steps 4 --evaluate 2 --length 384 --factors 1 --cases prose keys --models LMM transformer --parts none wide --batch 2 --out out/examples/needles
	$(RUN) $(EXPERIMENTS)/titans_documents.py --steps 8 --length 64 --cut 64 --window 16 --read 6016 --evaluate 4 --out out/examples/documents
	$(RUN) $(EXPERIMENTS)/titans_language.py --steps 4 --batch 4 --evaluate 2048 --out out/examples/titans_language
	$(RUN) $(EXPERIMENTS)/titans_forecast.py --steps 4 --batch 8 --out out/examples/titans_forecast
	$(RUN) benchmarks/training_speed.py --repeats 2 --out out/examples/training_speed
	$(RUN) benchmarks/bases.py --repeats 2 --images 1 --out out/examples/bases
	$(RUN) benchmarks/conversion.py --simulations 2 --steps 20 --out out/examples/conversion
	$(RUN) benchmarks/calibration.py --simulations 10 --out out/examples/calibration
	$(RUN) benchmarks/addressing.py --slots 1000 --mapped 2000 --repeats 1 --out out/examples/lookup_cost

wheel: install ## build the wheel, from the source distribution
	$(BIN)/python -m build --outdir dist

clean: ## remove what the targets made
	rm -rf .venv out build dist *.egg-info .pytest_cache .ruff_cache
