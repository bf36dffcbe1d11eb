# Each target sets itself up: on a fresh machine `make glue` or `make test` is all there is to type.
VENV := .venv
PYTHON := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help install glue pretrain translation vision time-series test test-slow test-hf test-versions test-versions-quick test-triton lint figures docs clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@echo "Installing into $(VENV), which takes a minute or two ..."
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

install: $(VENV)/installed  ## Install the package and all that its scripts and tests need into .venv.

glue: install  ## Fine-tune EA-BERT on film reviews, about six minutes on two cores.
	$(PYTHON) glue/glue_offline.py

pretrain: install  ## Pretrain EA-BERT from scratch on real text and fine-tune it, on two cores.
	$(PYTHON) language_modeling/pretrain_offline.py $(ARGS)

translation: install  ## Train EA-T5 from English to German from scratch, about twenty minutes on two cores.
	$(PYTHON) translation/translation_offline.py

vision: install  ## Train EA-ViT on handwritten digits; ARGS="--dataset fashion-mnist" takes Fashion-MNIST.
	$(PYTHON) image_classification/image_offline.py $(ARGS)

time-series: install  ## Train EA-DC-Transformer on JapaneseVowels, about three minutes on two cores.
	$(PYTHON) time_series/time_series_offline.py

test: install  ## Run the tests, but for the slow ones; meant to take at most 15 minutes on two cores.
	$(PYTHON) -m pytest -n 2 --dist loadgroup -m "not slow"

test-slow: install  ## Run the slow tests: more families and processes, whole runs, the documentation's code.
	$(PYTHON) -m pytest -n 2 --dist loadgroup -m slow

test-hf: install  ## Run Transformers' own model and configuration tests on our classes.
	$(PYTHON) -m pytest tests/transformers_suite

test-versions:  ## Run the tests of exactness with the oldest and the newest versions that setup.cfg allows.
	tests/versions.sh oldest
	tests/versions.sh newest

test-versions-quick: install  ## Run the tests of cached decoding with the oldest and the newest Transformers that setup.cfg allows.
	PYTHON=$(PYTHON) tests/versions.sh quick

test-triton: install  ## Install Triton, and test the kernels for GPUs with its interpreter.
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[triton]"
	$(PYTHON) -m pytest -n 2 tests/test_triton.py

lint: install  ## Check style and format.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

figures: install output/map_flow  ## Draw the pictures of maps in README and documentation; one is taken in Chromium.
	$(PYTHON) docs/draw_map_flow.py
	$(PYTHON) -m ea_hf.visualization output/map_flow "God created the heavens and the earth." --vanilla --output output/maps.html
	$(PYTHON) docs/photograph_page.py output/maps.html --view "layer=1&head=1&scale=map" --output docs/visualization.png

VERSES = --train_file glue/data/verses.jsonl.gz --text_column_name web

# A small model, trained from scratch for a few minutes, in whose maps the convolution has a share that can be seen.
output/map_flow: | install
	$(PYTHON) language_modeling/train_tokenizer.py --algorithm wordpiece --vocab_size 2000 $(VERSES) \
		--output_dir output/map_flow_tokenizer
	$(PYTHON) language_modeling/run_mlm.py --model_type bert --tokenizer_name output/map_flow_tokenizer $(VERSES) \
		--config_overrides hidden_size=128,num_hidden_layers=4,num_attention_heads=4,intermediate_size=512,max_position_embeddings=64,hidden_dropout_prob=0,attention_probs_dropout_prob=0 \
		--ea_residual_weight 0.5 --ea_conv_weight 0.5 --max_seq_length 48 --mlm_probability 0.25 \
		--per_device_train_batch_size 16 --learning_rate 1e-3 --num_warmup_steps 50 --max_train_steps 700 \
		--eval_steps no --checkpointing_steps no --output_dir output/map_flow --overwrite_output_dir

docs: install  ## Build the documentation's site in build/docs.
	$(VENV)/bin/mkdocs build

clean:  ## Delete what the other targets made, but for data and models.
	rm -rf $(VENV) .venv-oldest .venv-newest .cache build dist *.egg-info .pytest_cache .ruff_cache
