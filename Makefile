# The book from source: `make book` and `make test` need Python >= 3.11, a package index, and nothing else.
# Say `make VARIABLE=value target` to change one of these:
PROFILE ?= smoke
JOBS ?= 2
SEED ?= 0
PYTHON ?= python3
VENV ?= .venv
# One thread for each notebook or test worker: JOBS of them share the cores, and sums come out the same.
OMP_NUM_THREADS ?= 1

# What a person sets is text. `$(value ...)` takes it as it is, where make would run what stands in $(shell ...); and a recipe never
# holds it, but has it from its environment, "$$NB", where the shell would run what stands behind a `;`.
# All others are this file's own: `override` keeps what a command line or an environment says of them out.
# Which of these two stand on the command line: a target that works without them has no default for them, and what is in the
# environment may be there for another make, such as the one that called.
override GIVEN := $(foreach name,PROFILE SEED,$(if $(findstring command,$(origin $(name))),$(name)))
override SETTINGS := PROFILE JOBS SEED PYTHON VENV OMP_NUM_THREADS NB CELL FORCE LIST SCHEDULER BENCH LAB PAGES TAG AMAML_DATA AMAML_MIRROR PIP_EXTRA_INDEX_URL
$(foreach name,$(SETTINGS),$(if $(filter-out undefined,$(origin $(name))),$(eval override $(name) := $$(value $(name)))$(eval export $(name))))
override quoted = '$(subst ','\'',$1)'
# $(call demand,NAME,PATTERN,HINT): make stops unless the setting NAME is one word that the pattern matches.
override demand = $(if $(and $(filter 1,$(words $($1))),$(findstring <$(strip $($1))>,<$($1)>),$(shell printf '%s\n' $(call quoted,$($1)) | grep -Ex '$2')),,\
  $(error $1=$($1): say $3))
$(call demand,PROFILE,smoke|book|full,one of smoke book full)
$(call demand,JOBS,[1-9][0-9]?[0-9]?[0-9]?,a number from 1 to 9999)
$(call demand,OMP_NUM_THREADS,[1-9][0-9]?[0-9]?[0-9]?,a number from 1 to 9999)
$(call demand,SEED,0|[1-9][0-9]*,a number from 0)
# Names of files that make itself handles: it would split others, or take them for rules.
$(call demand,VENV,[[:alnum:]._/+][[:alnum:]._/+-]*,a path of letters and digits and ._/+- alone)
$(if $(AMAML_DATA),$(call demand,AMAML_DATA,[[:alnum:]._/+~][[:alnum:]._/+~-]*,a path of letters and digits and ._/+~- alone; a link may lead elsewhere))
# A backend from outside would keep the figures out of the notebooks.
unexport MPLBACKEND
# Where the environment has this name, too, make would call it to know what to export.
unexport demand

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env book test test-slow test-nbval test-browser test-all test-faults fuzz test-twice bench full data data-images images-gpu html pages links figures pdf lab dist notebooks notebook refresh sync lint lock clean rendered

override PY := $(VENV)/bin/python
override READY := $(VENV)/.ready
override NAMES := $(basename $(notdir $(sort $(wildcard book/src/*.md))))
$(if $(filter notebook,$(MAKECMDGOALS)),$(call demand,NB,$(subst $() ,|,$(NAMES)),for example make notebook NB=12_collaborative_filtering; one of $(NAMES)))
ifneq ($(filter full,$(MAKECMDGOALS)),)
$(if $(filter PROFILE,$(GIVEN)),$(call demand,PROFILE,full,PROFILE=full or nothing: `make full` has no other size))
$(if $(strip $(CELL)),$(if $(strip $(FORCE)),$(error FORCE=$(FORCE) and CELL=$(CELL): say one of them; both choose cells by words of their names)))
endif
override RUNS := $(NAMES:%=_runs/$(PROFILE)/%.ipynb)
# What a run depends on beside its source.
override CODE := $(shell find amaml_core experiments -name '*.py')
# The folder of the prepared data: AMAML_DATA, with the package's rule for `~` and relative paths.
override DATA := $(subst $(CURDIR)/,,$(shell AMAML_DATA=$(call quoted,$(AMAML_DATA)) $(call quoted,$(PYTHON)) -I amaml_core/locations.py))
# 1 is that script's own status: where there is no PYTHON it is 127, of which the rule for the environment tells.
$(if $(filter 1,$(.SHELLSTATUS)),$(error AMAML_DATA=$(AMAML_DATA): say a folder that there can be))
override MANIFESTS := $(wildcard $(DATA)/*/manifest.json)
override INPUTS := $(CODE) $(wildcard results/full/*.jsonl)
# And some chapters read data. The others are run as if there were none, so that data that come later do not concern them.
override READERS := 01_learning_to_learn 12_collaborative_filtering 13_few_shot_images 17_published_ratings 19_report
override run = $(PY) -m tools.notebooks run $1 --profile "$$PROFILE" $(if $(filter $1,$(READERS)),,--without-data)
override WRITTEN := $(wildcard examples/*.py) $(shell find book -name '*.md' -o -name '*.bib' -o -path 'book/_static/*' -type f -o -path 'book/_templates/*' -type f)
override SUBMAKE := +@$(MAKE) --no-print-directory

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo; echo "PROFILE=smoke|book|full (now $$PROFILE), JOBS=$$JOBS, SEED=$$SEED, PYTHON=$$PYTHON, VENV=$$VENV"

# $(call unless-taken,FOLDER): stops unless the environment in this folder is this checkout's, or nobody's.
override unless-taken = @for known in $1/lib/python*/site-packages/checkout.pth; do \
	  other=$$(cat "$$known" 2>/dev/null); \
	  if [ -n "$$other" ] && [ -e "$$other/Makefile" ] && ! [ "$$other" -ef . ]; then \
	    echo "The environment $1 belongs to the checkout $$other; choose another folder, for example VENV=.venv, or remove $1" >&2; \
	    exit 1; \
	  fi; \
	done
# The notebooks import what stands beside the package, too, wherever they are run from.
override take = @pwd > "$$($1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/checkout.pth"

$(READY): requirements.lock pyproject.toml
	$(call unless-taken,$(VENV))
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$$PYTHON is not there, or older than 3.11; say for example: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing the packages of requirements.lock into $$VENV (a few minutes) ..."
	@"$$PYTHON" -m venv "$$VENV"
	@# Compiling all modules takes longer than installing them, and most are never imported.
	@$(PY) -m pip install --disable-pip-version-check -qq --no-compile -r requirements.lock
	@$(PY) -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation --editable .
	$(call take,$(VENV))
	@touch $@

env: $(READY)  ## the environment in .venv

book: $(READY)  ## run every chapter at PROFILE and render the runs
	$(SUBMAKE) data
	$(SUBMAKE) rendered
	@$(PY) -m tools.book report

override PYTEST = AMAML_PROFILE=smoke $(PY) -m pytest -n "$$JOBS" --dist $1 -q

test: $(READY)  ## unit tests, style, all chapters at smoke with their checked outputs, the strict book (minutes)
	$(SUBMAKE) data
	$(SUBMAKE) rendered PROFILE=smoke
	$(call PYTEST,loadfile) -m "not slow" tests amaml_core

test-slow: $(READY)  ## the tests that `make test` leaves out
	$(SUBMAKE) data
	$(call PYTEST,worksteal) -m slow tests amaml_core

test-nbval: $(READY)  ## the committed notebooks run again as they are, by another program than `make test` runs them by
	$(SUBMAKE) data
	$(call PYTEST,loadfile) --nbval-lax --nbval-current-env --nbval-cell-timeout=600 $(wildcard book/*.ipynb)

test-browser: $(READY)  ## every rendered page in Chromium: errors, links, width, accessibility, weight (minutes)
	$(SUBMAKE) rendered
	@$(PY) -m pytest -n "$$JOBS" --dist loadgroup -q -p no:cacheprovider browser

test-all:  ## test, test-slow, test-nbval and test-browser, one after the other
	$(SUBMAKE) test
	$(SUBMAKE) test-slow
	$(SUBMAKE) test-nbval
	$(SUBMAKE) test-browser

override KILLED := sweep pages chapter cells data fit download
test-faults: $(READY)  ## kill long work at random moments, and read damaged files; the counts go into results/faults.json (20 minutes)
	+@$(MAKE) --no-print-directory -k -j"$$JOBS" $(KILLED:%=kill-%) fuzz

kill-%: $(READY)
	@$(PY) tests/faults/kills.py $* --record results/faults.json

fuzz: $(READY)
	@$(PY) tests/faults/fuzz.py --record results/faults.json

test-twice: $(READY)  ## make every chapter and every experiment twice at smoke, and compare; the counts go there too (20 minutes)
	$(SUBMAKE) data
	@$(PY) tests/faults/twice.py --jobs "$$JOBS" --record results/faults.json

data: $(READY)  ## prepare the data sets that can be reached (the small ones)
	@$(PY) -m data_scripts

data-images: $(READY)  ## prepare the image data sets too (large)
	@$(PY) -m data_scripts --images

images-gpu: $(READY)  ## what the image cells need on a machine with a GPU, in parts, into _gpu
	@$(PY) -m tools.images_gpu pack

notebooks: $(READY)  ## run every chapter at PROFILE, into _runs/PROFILE
	@# What has a date in the future was made by a clock that jumped, and would be taken for newer than what is edited now.
	@mkdir -p _build _runs/$(PROFILE) && touch _build/.now && find _build _runs/$(PROFILE) -maxdepth 1 \
	  \( -name '*.ipynb' -o -name '.rendered-*' \) -newer _build/.now -exec touch -t 197001020000 {} +
	+@$(MAKE) --no-print-directory -k -j"$$JOBS" $(RUNS)

# `make data` comes first and in a make of its own, so its results are seen here.
$(READERS:%=_runs/$(PROFILE)/%.ipynb): $(MANIFESTS)

_runs/$(PROFILE)/%.ipynb: book/src/%.md $(INPUTS) tools/notebooks.py $(READY)
	@$(call run,$*)

notebook: $(READY)  ## run one chapter: make notebook NB=12_collaborative_filtering PROFILE=book (SEED=1: with other random numbers)
	@$(call run,$(NB)) --seed "$$SEED"

rendered: notebooks
	$(SUBMAKE) _build/.rendered-$(PROFILE)

_build/.rendered-$(PROFILE): $(RUNS) $(WRITTEN) $(CODE) results/faults.json _config.yml _toc.yml tools/book.py tools/repository.py
	@$(PY) -m tools.book render --profile "$$PROFILE"

html: $(READY)  ## render the committed notebooks
	@$(PY) -m tools.book render

pages: html  ## render the committed notebooks and check every page as a reader meets it
	@$(PY) -m pytest -n "$$JOBS" --dist loadgroup -q -p no:cacheprovider browser tests/test_book.py

links: $(READY)  ## do the links to other hosts still lead somewhere?
	@$(PY) -m tools.book links

figures: $(READY)  ## the figures of the notebooks as SVG and PNG, and which differ from the last commit
	@$(PY) -m tools.figures

pdf: html  ## print the committed chapters by Chromium, one file for each page (PAGES='04_adjoint 05_amaml': those)
	@set -f; $(PY) -m tools.pdf -- $$PAGES

# Of kernels with the same name JupyterLab takes that of its own environment.
lab: $(READY)  ## open the committed chapters in JupyterLab, text and formulas set as on the pages (LAB=--no-browser: its options)
	@set -f; JUPYTER_PATH= JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyter lab --ServerApp.root_dir="$$(pwd)" $$LAB book/00_preface.ipynb

refresh:  ## run every chapter at the book profile and make the runs the committed notebooks
	$(SUBMAKE) notebooks PROFILE=book
	@$(PY) -m tools.notebooks publish --profile book
	@$(PY) -m tools.readme_figure

sync: $(READY)  ## carry the text of the sources into the committed notebooks
	@$(PY) -m tools.notebooks sync

# The other libraries have an environment of their own: `make lock` freezes that of the book.
$(VENV)-bench/.ready: requirements.lock benchmarks/requirements.txt pyproject.toml
	$(call unless-taken,$(VENV)-bench)
	@"$$PYTHON" -m venv "$$VENV-bench"
	@$(VENV)-bench/bin/python -m pip install --disable-pip-version-check -qq -c requirements.lock setuptools wheel \
	  torch torchdiffeq numpy pandas tqdm pillow matplotlib seaborn pytest -r benchmarks/requirements.txt
	@$(VENV)-bench/bin/python -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation --editable .
	$(call take,$(VENV)-bench)
	@touch $@

bench: $(VENV)-bench/.ready  ## compare with other libraries (hours; BENCH=--quick: a few minutes)
	@set -f; $(VENV)-bench/bin/python -m benchmarks $$BENCH

full: $(READY)  ## run the paper-scale cells that have no record yet, JOBS at once (CELL='words of its name', FORCE='words': run those again, SEED=1: of that seed alone, SCHEDULER=tcp://HOST:PORT: on a Dask cluster)
	$(SUBMAKE) data
	@$(PY) -m experiments --jobs "$$JOBS" $(if $(SCHEDULER),--scheduler="$$SCHEDULER") $(if $(LIST),--list) $(if $(filter SEED,$(GIVEN)),--seed="$$SEED") $(if $(FORCE),--force --only="$$FORCE",$(if $(CELL),--only="$$CELL"))

dist: $(READY)  ## build the wheel and the source archive into dist, and check them
	@$(PY) -m tools.dist $(if $(TAG),"$$TAG")

lint: $(READY)  ## check the style, the types and the spelling
	@$(PY) -m ruff format --check
	@$(PY) -m ruff check
	@$(PY) -m mypy
	@$(PY) -m codespell_lib

lock: $(READY)  ## write the versions in .venv into requirements.lock, and the hashes of their files into requirements.hashes
	@# In steps, and not by a pipe, whose first command may fail unseen and leave a lock file of no packages.
	@new=$$(mktemp) && trap 'rm -f "$$new" requirements.lock.new' EXIT && \
	  $(PY) -m pip freeze --all --local --exclude pip --exclude-editable > "$$new" && \
	  { sed -n '/^#/p' requirements.lock && sed -E 's/\+[a-z0-9.]+$$//' "$$new"; } > requirements.lock.new && \
	  mv requirements.lock.new requirements.lock
	@$(PY) -m tools.hashes

clean:  ## remove what was built; data and .venv stay
	rm -rf _build _runs build dist .dist.earlier .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
