"""pretrain: trains all weights of a model and writes it in Hugging Face's layout.

The model starts from random weights, with a given tokenizer or one learned from the synthetic rows, or from the weights
of an existing model.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.data.synthetic import SyntheticRows
from ryzjax.data.synthetic.draw import Split
from ryzjax.data.synthetic.vocabulary import train_tokenizer, write_tokenizer
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.data.training import DataConfig, open_data
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.loading.text_files import copy_text_files
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from ryzjax.training.config import BaseConfig, TrainConfig
from ryzjax.training.finetune import FinetuneResult, open_base, settings_of, stored_dtype
from ryzjax.training.optimizers.config import OptimizerConfig
from ryzjax.training.run.export import export_model, text_files_of
from ryzjax.training.run.run import run_training
from ryzjax.training.run.run_file import earlier_dtype
from ryzjax.training.start.dtype import Dtype, choose_dtype
from ryzjax.training.start.new_model import NewModelConfig
from ryzjax.training.start.training_start import TrainingStart, start_from_scratch, start_with_all_weights

__all__ = ["pretrain"]

_TOKENIZER_ROWS = 6000
_EVAL_SEED = 1


def pretrain(
    new: NewModelConfig,
    data: DataConfig,
    *,
    optimizer: OptimizerConfig | None = None,
    train: TrainConfig | None = None,
    show_progress: bool = True,
) -> FinetuneResult:
    """Trains all weights of a model, starting from random ones or from those of `new.begin_from`. See
    docs/finetuning.md.

    Args:
      new: The model and its tokenizer.
      data: The training data. Names no files if the rows are synthetic.
      optimizer: The optimizer's settings; None takes the defaults.
      train: The run's settings; None takes the defaults.
      show_progress: Show a progress bar on stderr.

    Raises:
      ConfigError: Settings contradict each other or do not fit the model.
      CheckpointError: A model cannot be read, or the run cannot be written or resumed.
      DataError: A row is malformed or has nothing to train on.
      TrainingError: The loss or a gradient is not finite.
    """
    optimizer, train = optimizer or OptimizerConfig(), train or TrainConfig()
    if train.objective != "sft":
        raise ConfigError(
            f"objective={train.objective!r} needs a model that can already answer; pretrain with objective sft"
        )
    if (new.synthetic_rows is None) == (not data.data):
        raise ConfigError("name data to train on, or synthetic_rows; exactly one of the two")
    rows = eval_rows = None
    if new.synthetic_rows is not None:
        rows = _synthetic_rows(new, train.seed, new.synthetic_rows, "train")
        if new.synthetic_eval_rows:
            eval_rows = _synthetic_rows(new, train.seed + _EVAL_SEED, new.synthetic_eval_rows, "test")
    folder = Path(train.out).expanduser()
    choice = choose_dtype(new.dtype, earlier=earlier_dtype(folder, "model.dtype") if train.resume else None)
    if new.begin_from is None:
        source = _fresh(new, rows, folder, choice.dtype)
    else:
        source = _existing(new.begin_from, new.layout, choice.dtype)
    computed_in = source.model.config.dtype
    if show_progress:
        print(choice.message(computed_in), file=sys.stderr)
    if data.sequence_tokens > source.model.config.max_position:
        raise ConfigError(
            f"sequence_tokens={data.sequence_tokens} is more than max_position={source.model.config.max_position}"
        )
    loaders = open_data(data, source.tokenizer, batch_rows=train.rows_per_update, rows=rows, eval_rows=eval_rows)
    total_steps = train.max_steps or loaders.train.count_batches(train.epochs, show_progress=show_progress)
    start = source.start(train, show_progress)
    outcome = run_training(
        start,
        loaders,
        name=f"{source.model.num_parameters / 1e6:.1f}M {source.config['model_type']}",
        optimizer=optimizer,
        train=train,
        total_steps=total_steps,
        sequence_tokens=data.sequence_tokens,
        settings=settings_of(model=replace(new, dtype=computed_in), data=data, optimizer=optimizer, train=train),
        show_progress=show_progress,
    )
    exported = export_model(
        folder,
        start,
        outcome.params,
        dtype=source.stored_dtype,
        config=source.config,
        generation=source.generation,
        copy_texts=source.copy_texts,
    )
    return FinetuneResult(exported=exported, adapter=None, step=outcome.step, loop=outcome.loop)


@dataclass(frozen=True, kw_only=True)
class _ModelSource:
    """A model to train, before any weight is drawn or read.

    Attributes:
      model: Shapes of the model.
      stored_dtype: Dtype to write the weights in.
      tokenizer: The model's tokenizer.
      config: Content of the result's config.json.
      generation: Content of the result's generation_config.json; None for no such file.
      copy_texts: Writes the tokenizer's files into a folder.
      start: Draws or reads the weights. The second argument says whether to show a progress bar.
    """

    model: AbstractModel
    stored_dtype: str
    tokenizer: Tokenizer
    config: Mapping[str, object]
    generation: Mapping[str, object] | None
    copy_texts: Callable[[Path], None]
    start: Callable[[TrainConfig, bool], TrainingStart]


def _fresh(new: NewModelConfig, rows: SyntheticRows | None, folder: Path, dtype: Dtype) -> _ModelSource:
    """A model with random weights."""
    texts = _tokenizer_folder(new, rows, folder)
    tokenizer = Tokenizer.load(texts)
    config = _hf_config(new, tokenizer, texts)
    generation = _json(texts / "generation_config.json") if (texts / "generation_config.json").is_file() else {}
    model = _abstract(config, generation, new, new.model_dtype if dtype == "auto" else dtype)
    return _ModelSource(
        model=model,
        stored_dtype=new.model_dtype,
        tokenizer=tokenizer,
        config=config,
        generation=generation or None,
        copy_texts=lambda out: copy_text_files(texts, out),
        start=lambda train, show_progress: start_from_scratch(model, train),
    )


def _existing(name: str, layout: str, dtype: Dtype) -> _ModelSource:
    """A model whose weights exist already."""
    base = BaseConfig(model=name, layout=layout)
    opened = open_base(replace(base, dtype=dtype))
    return _ModelSource(
        model=opened.model,
        stored_dtype=stored_dtype(opened, base),
        tokenizer=opened.tokenizer,
        config=opened.source.config,
        generation=opened.source.generation,
        copy_texts=text_files_of(opened),
        start=lambda train, show_progress: start_with_all_weights(opened, train, show_progress=show_progress),
    )


def _synthetic_rows(new: NewModelConfig, seed: int, count: int, split: Split) -> SyntheticRows:
    mixture = new.synthetic_mixture or None
    return SyntheticRows(seed, count, split=split, mixture=mixture, begins_at=new.synthetic_begins_at)


def _tokenizer_folder(new: NewModelConfig, rows: SyntheticRows | None, folder: Path) -> Path:
    """Returns the folder of the given tokenizer, or of one learned from the rows and saved in the run's folder."""
    if new.tokenizer is not None:
        return Path(new.tokenizer).expanduser()
    if rows is None:
        raise ConfigError("no tokenizer named; give the folder of one, such as a model's folder")
    own = folder / "tokenizer"
    if (own / "generation_config.json").is_file():
        return own  # This run made it before it was stopped.
    step = max(1, len(rows) // _TOKENIZER_ROWS)
    learnt = train_tokenizer((rows[i] for i in range(0, len(rows), step)), vocab_size=new.vocab_size)
    try:
        own.mkdir(parents=True, exist_ok=True)
        write_tokenizer(own, learnt, max_tokens=new.max_position)
    except OSError as error:
        shutil.rmtree(own, ignore_errors=True)
        raise CheckpointError(
            f"{own}: cannot be written ({error.strerror}); check the path, permissions and disk space"
        ) from error
    return own


def _hf_config(new: NewModelConfig, tokenizer: Tokenizer, texts: Path) -> dict[str, object]:
    """Returns the model's config.json, with the tokenizer's vocabulary size."""
    if new.model_config is not None:
        config = dict(_json(Path(new.model_config).expanduser()))
        config["vocab_size"] = tokenizer.vocab_size
        return config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": new.hidden_size,
        "intermediate_size": new.intermediate_size,
        "num_hidden_layers": new.num_layers,
        "num_attention_heads": new.num_heads,
        "num_key_value_heads": new.num_kv_heads,
        "head_dim": new.hidden_size // new.num_heads,
        "hidden_act": "silu",
        "max_position_embeddings": new.max_position,
        "rms_norm_eps": 1e-5,
        "rope_theta": new.rope_theta,
        "tie_word_embeddings": new.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        **_special_ids(texts),
    }


def _special_ids(texts: Path) -> dict[str, object]:
    """Returns the ids of the special tokens that generation_config.json names."""
    path = texts / "generation_config.json"
    generation = _json(path) if path.is_file() else {}
    return {key: generation[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in generation}


def _abstract(
    config: Mapping[str, object], generation: Mapping[str, object], new: NewModelConfig, dtype: str
) -> AbstractModel:
    ours = model_config_from_hf(config, generation, dtype=dtype, source=new.model_config or "the new model")
    return abstract_model(ours, Placement(Layout.load(new.layout)))


def _json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a JSON file") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; expected an object")
    return content
