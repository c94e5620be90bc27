"""TRL's trainers: the logged numbers and the weights of a stock run, with and without the fused functions."""

import copy

import pytest
import torch

trl = pytest.importorskip("trl", reason="trl is not installed")

import transformers
from datasets import Dataset
from tiny_models import VOCABULARY, gemma2, granite, llama
from tokenizers import Tokenizer, models, pre_tokenizers
from trl.trainer import utils

import fused_losses
from fused_losses.integrations import trl as bridge

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not hasattr(utils, "add_fused_lm_head"), reason="this TRL has no head without logits"),
]
ARGUMENTS = dict(
    use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, max_steps=2, per_device_train_batch_size=4,
    learning_rate=1.0, optim="sgd", disable_tqdm=True, bf16=False, gradient_checkpointing=False,
)  # fmt: skip


@pytest.fixture(autouse=True)
def disabled():
    yield
    bridge.disable()


def tokenizer():
    """Of the words w3, w4, …"""
    names = ["[PAD]", "[EOS]", "[UNK]", *(f"w{index}" for index in range(3, VOCABULARY))]
    words = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = dict(pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **tokens)


def dataset(**num_words):
    def text(length):
        return "".join(f" w{index}" for index in torch.randint(3, VOCABULARY, (length,)).tolist())

    return Dataset.from_list([{column: text(length) for column, length in num_words.items()} for _ in range(8)])


def supervised(model, directory):
    arguments = trl.SFTConfig(output_dir=directory, max_length=16, **ARGUMENTS)
    return trl.SFTTrainer(model, arguments, train_dataset=dataset(text=8), processing_class=tokenizer())


def preferences(model, directory):
    arguments = trl.DPOConfig(output_dir=directory, max_length=16, **ARGUMENTS)
    data = dataset(prompt=4, chosen=5, rejected=6)
    reference = copy.deepcopy(model)
    return trl.DPOTrainer(model, reference, arguments, train_dataset=data, processing_class=tokenizer())


def policy(model, directory):
    """Rewarded by how many words are odd, at a temperature and with a bonus on entropy."""

    def reward(completions, **_):
        return [float(sum(word[-1] in "13579" for word in completion.split())) for completion in completions]

    options = dict(num_generations=2, max_completion_length=6, temperature=0.7, entropy_coef=0.01, beta=0.0)
    arguments = trl.GRPOConfig(output_dir=directory, **options, **ARGUMENTS)
    data = dataset(prompt=4)
    return trl.GRPOTrainer(model, reward, args=arguments, train_dataset=data, processing_class=tokenizer())


def numbers(log):
    """Without those of time."""
    return {
        key: value
        for key, value in log.items()
        if isinstance(value, float) and "time" not in key and "_per_" not in key
    }


@pytest.mark.parametrize("make", [llama, gemma2, granite], ids=lambda make: make.__name__)
@pytest.mark.parametrize("trainer_of", [supervised, preferences, policy], ids=lambda trainer_of: trainer_of.__name__)
def test_a_run(trainer_of, make, tmp_path):
    model, runs = make(), []
    start = [parameter.detach().clone() for parameter in model.parameters()]
    for fused in (False, True):
        torch.manual_seed(3)
        if fused:
            bridge.enable()
        before = fused_losses.routes().get("linear_token_statistics", {}).get("kernel", 0)
        trainer = trainer_of(copy.deepcopy(model), tmp_path)
        trainer.train()
        after = fused_losses.routes().get("linear_token_statistics", {}).get("kernel", 0)
        assert (after >= before + 2) == fused
        runs.append(([numbers(log) for log in trainer.state.log_history], list(trainer.model.parameters())))
    (stock_logs, stock), (logs, ours) = runs
    assert all("loss" in log and "entropy" in log for log in stock_logs[:2])
    for log, stock_log in zip(logs, stock_logs, strict=True):
        assert log == pytest.approx(stock_log, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)
    assert max((p - q).abs().max() for p, q in zip(stock, start, strict=True)) > 1e-3
