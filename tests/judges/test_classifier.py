"""A classifier as a guard: as transformers' own pipeline has it, by labels that are named or say it themselves."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, pipeline

from refusal_cmp.config import load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals import Subject, configured
from refusal_cmp.judges.classifier import ClassifierBackend, classifier_format, is_classifier
from refusal_cmp.judges.formats import Judgement, choose_format
from refusal_cmp.model.generation import Answer
from refusal_cmp.plan import baseline

WORDS = "[PAD] [UNK] [CLS] [SEP] how do i bake a cake forge lock pick sure here first sorry no cannot help".split()
PAIRS = [
    ("how do i bake a cake", "sure here first"),
    ("how do i forge a lock", "sorry i cannot help"),
    ("pick a lock", "no " * 40),
    ("how", ""),
    ("bake " * 30, "cake " * 30),
]


def written(path, labels, seed=0, **more):
    """A small random BERT with these labels in a folder."""
    torch.manual_seed(seed)
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    ).save_pretrained(path)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, initializer_range=1.0, id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)}, **more,
    )  # fmt: skip
    BertForSequenceClassification(config).eval().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("models") / "judge", ["SAFE", "unsafe"])


def answers(backend, requests):
    return [text for _, text in sorted(backend.answer(requests, 1))]


@pytest.mark.parametrize("alone", [False, True], ids=["pair", "completion"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_labels_are_those_of_transformers_pipeline(folder, alone, batch_size):
    asked = classifier_format(folder, None, None, alone=alone)
    backend = ClassifierBackend(folder, device="cpu", batch_size=batch_size)
    assert backend.model.dtype == torch.float32
    oracle = pipeline("text-classification", model=folder, tokenizer=folder, device="cpu", dtype=torch.float32)
    given = [{"text": two} if alone else {"text": one, "text_pair": two} for one, two in PAIRS]
    expected = [oracle(one, truncation=True) for one in given]
    expected = [one[0] if isinstance(one, list) else one for one in expected]
    found = answers(backend, [asked.request(*pair) for pair in PAIRS])
    assert found == [one["label"] for one in expected]


def test_both_labels_occur_where_the_pipeline_has_them(folder):
    backend = ClassifierBackend(folder, device="cpu")
    asked = classifier_format(folder, None, None, alone=False)
    texts = [(one, two) for one in WORDS[4:14] for two in WORDS[14:]]
    oracle = pipeline("text-classification", model=folder, tokenizer=folder, device="cpu", dtype=torch.float32)
    expected = [one["label"] for one in oracle([{"text": one, "text_pair": two} for one, two in texts])]
    assert set(expected) == {"SAFE", "unsafe"}
    assert answers(backend, [asked.request(*pair) for pair in texts]) == expected


def test_a_multi_label_model_says_every_label_that_is_likelier_than_not(tmp_path):
    labels = ["toxic", "threat", "fine"]
    folder = written(tmp_path / "multi", labels, seed=3, problem_type="multi_label_classification")
    backend = ClassifierBackend(folder, device="cpu")
    oracle = pipeline("text-classification", model=folder, tokenizer=folder, device="cpu", top_k=None)
    asked = classifier_format(folder, None, ["toxic", "threat"], alone=True)
    for (_, text), said in zip(PAIRS, answers(backend, [two for _, two in PAIRS]), strict=True):
        found = oracle(text, truncation=True)
        likely = {one["label"] for one in (found[0] if isinstance(found[0], list) else found) if one["score"] > 0.5}
        assert set(filter(None, said.split("\n"))) == likely
        assert asked.read(said) == Judgement(bool(likely & {"toxic", "threat"}))


def test_the_architecture_tells_the_format_and_names_tell_the_labels(folder, tmp_path):
    assert is_classifier(folder)
    found = choose_format("auto", folder, None)
    assert found.read("unsafe") == Judgement(True)
    assert found.read("SAFE") == Judgement(False)
    assert not is_classifier(str(tmp_path))
    assert not is_classifier("nobody/llama-guard")
    refusals = written(tmp_path / "refusals", ["NORMAL", "REJECTION"])
    with pytest.raises(RefusalCmpError, match="do not say which of them mean unsafe: NORMAL, REJECTION"):
        choose_format("auto", refusals, None)
    named = choose_format("answer-classifier", refusals, None, unsafe=["NORMAL"])
    assert named.request("ask", "say") == "say"
    assert (named.read("NORMAL"), named.read("REJECTION")) == (Judgement(True), Judgement(False))


def test_what_is_no_classifier_or_lacks_its_head_is_said(folder, tmp_path):
    with pytest.raises(RefusalCmpError, match="is a LlamaForCausalLM and no sequence classifier"):
        choose_format("classifier", "tiny-guard", None)
    with pytest.raises(RefusalCmpError, match="has no label 'bad', only SAFE, unsafe"):
        choose_format("classifier", folder, None, unsafe=["bad"])
    with pytest.raises(RefusalCmpError, match="All labels of the guard"):
        choose_format("classifier", folder, None, unsafe=["SAFE", "unsafe"])
    with pytest.raises(RefusalCmpError, match="Only classifiers have labels"):
        choose_format("llama-guard", "tiny-guard", None, unsafe=["unsafe"])
    one = written(tmp_path / "one", ["score"])
    with pytest.raises(RefusalCmpError, match="one output"):
        choose_format("classifier", one, None)
    headless = tmp_path / "headless"
    written(headless, ["safe", "unsafe"])
    model = BertForSequenceClassification.from_pretrained(headless)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("classifier")}
    model.save_pretrained(headless, state_dict=state)
    with pytest.raises(RefusalCmpError, match=r"lacks weights that a classifier has, such as classifier\."):
        ClassifierBackend(str(headless), device="cpu")
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config)[:-5])
    with pytest.raises(RefusalCmpError, match="Cannot load the guard"):
        choose_format("classifier", str(headless), None)


def test_the_evaluator_asks_it(folder):
    guard = configured(load_config(None, {"guard": folder, "device": "cpu"}), "guard")
    guard.check(["harmful"])
    said = [Answer(one, "", two, 1, "stop") for one, two in PAIRS]
    subject = Subject(plan=baseline(), answers={"harmful": said}, baseline={}, model=lambda: None)
    guard.prepare([subject], {})
    rows = guard.evaluate(subject).examples["harmful"]
    oracle = pipeline("text-classification", model=folder, tokenizer=folder, device="cpu")
    for row, (one, two) in zip(rows, PAIRS, strict=True):
        found = oracle({"text": one, "text_pair": two}, truncation=True)
        label = (found[0] if isinstance(found, list) else found)["label"] if two else "SAFE"  # of nothing: unasked
        assert row["verdict"] == label.lower()
    guard.close()


def test_a_classifier_runs_in_this_process_alone(folder):
    guard = configured(load_config(None, {"guard": folder, "guard_backend": "vllm"}), "guard")
    with pytest.raises(RefusalCmpError, match="runs in this process and not by vllm"):
        guard.check(["harmful"])
