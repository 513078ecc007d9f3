import json
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt_lightning.gpt.tokenizer import CharTokenizer, UnknownCharacterError, VocabularyError

SENTENCE = "Question: Xin chào \nAnswer: Công ty BICweb kính chào quý khách!."
# Written out by hand: what the original project makes of the sentence, ids by position.
SYMBOLS = [*"\n !.:ABCIQXbceghiknoqrstuwyàáíôý", "<pad>", "<unk>"]
SPECIALS = ["<pad>", "<unk>"]


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@st.composite
def texts_and_vocabularies(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """A text, and a vocabulary of its characters with the ids in any order."""
    text = draw(st.text() | st.text(alphabet=SENTENCE))
    symbols = draw(st.permutations([*sorted(set(unicodedata.normalize("NFC", text))), *SPECIALS]))
    return text, {symbol: i for i, symbol in enumerate(symbols)}


def reloaded(tokenizer: CharTokenizer) -> CharTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "vocab.json")
        return CharTokenizer.load(Path(folder) / "vocab.json")


def test_the_sentence_has_34_symbols_by_code_point_and_then_the_specials() -> None:
    tokenizer = CharTokenizer.from_text(SENTENCE)
    assert len(tokenizer) == 34
    assert tokenizer.vocab == {symbol: i for i, symbol in enumerate(SYMBOLS)}
    assert tokenizer.vocab["<pad>"] == 32
    assert tokenizer.vocab["<unk>"] == 33


def test_encode_and_decode_the_sentence() -> None:
    ids = CharTokenizer.from_text(SENTENCE).encode(SENTENCE)
    assert ids == [SYMBOLS.index(character) for character in SENTENCE]
    assert len(ids) == 64
    assert CharTokenizer.from_text(SENTENCE).decode(ids) == SENTENCE


def test_decode_shows_the_specials_by_name_and_takes_any_iterable() -> None:
    assert CharTokenizer.from_text(SENTENCE).decode(iter([32, 5, 33])) == "<pad>A<unk>"


@settings(deadline=None)
@given(st.text())
def test_encode_save_load_encode_is_the_identity(text: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    again = reloaded(tokenizer)
    assert again.vocab == tokenizer.vocab
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


@settings(deadline=None)
@given(texts_and_vocabularies())
def test_ids_in_any_order_are_kept_as_saved(text_and_vocab: tuple[str, dict[str, int]]) -> None:
    text, vocab = text_and_vocab
    tokenizer = CharTokenizer(vocab)
    ids = tokenizer.encode(text)
    assert ids == [vocab[character] for character in unicodedata.normalize("NFC", text)]
    assert reloaded(tokenizer).vocab == vocab
    assert reloaded(tokenizer).encode(text) == ids


@settings(deadline=None)
@given(st.text())
def test_decomposed_text_gets_the_ids_of_composed_text(text: str) -> None:
    composed = CharTokenizer.from_text(unicodedata.normalize("NFC", text))
    assert CharTokenizer.from_text(nfd(text)).vocab == composed.vocab
    assert composed.encode(nfd(text)) == composed.encode(text)


def test_vietnamese_typed_on_a_mac_is_the_sentence() -> None:
    assert len(nfd(SENTENCE)) > len(SENTENCE)
    assert CharTokenizer.from_text(nfd(SENTENCE)).vocab == {symbol: i for i, symbol in enumerate(SYMBOLS)}
    assert CharTokenizer.from_text(SENTENCE).encode(nfd("chào")) == [SYMBOLS.index(c) for c in "chào"]


def test_an_unknown_character_is_named_with_its_position() -> None:
    with pytest.raises(UnknownCharacterError) as caught:
        CharTokenizer.from_text(SENTENCE).encode("Xin Đhào")
    assert "'Đ' (U+0110) at position 5 of 'Xin Đhào'" in str(caught.value)


def test_the_position_of_an_unknown_character_is_that_in_the_composed_text() -> None:
    with pytest.raises(UnknownCharacterError, match=r"'ú' .*position 6 "):
        CharTokenizer.from_text(SENTENCE).encode(nfd("chàoiú"))


def test_unk_stands_in_only_on_request() -> None:
    tokenizer = CharTokenizer.from_text(SENTENCE)
    with pytest.raises(UnknownCharacterError):
        tokenizer.encode("Xin 7!")
    assert tokenizer.encode("Xin 7!", allow_unknown=True) == [*tokenizer.encode("Xin "), 33, SYMBOLS.index("!")]


@pytest.mark.parametrize("symbol", SPECIALS)
def test_the_text_of_a_special_symbol_is_not_its_id(symbol: str) -> None:
    tokenizer = CharTokenizer.from_text("<adknpu>")
    assert tokenizer.encode(symbol) == [tokenizer.vocab[character] for character in symbol]


@pytest.mark.parametrize("ids", [[34], [0, -1]])
def test_decode_refuses_ids_outside_the_vocabulary(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=f"expected ids from 0 to 33, got {ids[-1]}"):
        CharTokenizer.from_text(SENTENCE).decode(ids)


def test_the_vocabulary_is_a_copy() -> None:
    vocab = dict(CharTokenizer.from_text("ab").vocab)
    tokenizer = CharTokenizer(vocab)
    vocab["c"] = 9
    assert "c" not in tokenizer.vocab


def test_the_file_is_readable_utf8_json_from_symbol_to_id(tmp_path: Path) -> None:
    CharTokenizer.from_text(SENTENCE).save(tmp_path / "vocab.json")
    text = (tmp_path / "vocab.json").read_bytes().decode("utf-8")
    assert json.loads(text) == {symbol: i for i, symbol in enumerate(SYMBOLS)}
    assert '"ý"' in text


def test_a_file_as_the_original_project_writes_it_keeps_its_ids(tmp_path: Path) -> None:
    vocab = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    for name, ascii_only in (("escaped.json", True), ("plain.json", False)):
        (tmp_path / name).write_text(json.dumps(vocab, ensure_ascii=ascii_only), encoding="utf-8")
        assert CharTokenizer.load(tmp_path / name).vocab == vocab


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{'a': 0", "Expecting property name"),
        ("", "Expecting value"),
        ('["a", "<pad>", "<unk>"]', "expected an object from symbol to id, got list"),
        ('{"a": 0, "<pad>": 1, "<unk>": 1}', "expected the ids 0 to 2, each once"),
        ('{"a": 0, "<pad>": 1, "<unk>": 3}', "expected the ids 0 to 2, each once"),
        ('{"a": 1, "<pad>": 2, "<unk>": 3}', "expected the ids 0 to 2, each once"),
        ('{"a": false, "<pad>": true, "<unk>": 2}', "expected the ids 0 to 2, each once"),
        ('{"a": 0.0, "<pad>": 1, "<unk>": 2}', "expected the ids 0 to 2, each once"),
        ('{"a": "0", "<pad>": 1, "<unk>": 2}', "expected the ids 0 to 2, each once"),
        ('{"a": null, "<pad>": 1, "<unk>": 2}', "expected the ids 0 to 2, each once"),
        ('{"ab": 0, "<pad>": 1, "<unk>": 2}', "got 'ab'"),
        ('{"": 0, "<pad>": 1, "<unk>": 2}', "got ''"),
        ('{"\\ud800": 0, "<pad>": 1, "<unk>": 2}', "lone surrogate"),
        ('{"a": 0, "<unk>": 1}', "expected the symbol <pad>"),
        ('{"a": 0, "<pad>": 1}', "expected the symbol <unk>"),
        ("{}", "expected the symbol <pad>"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_named_with_the_reason(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(VocabularyError) as caught:
        CharTokenizer.load(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_bytes('{"ý": 0, "<pad>": 1, "<unk>": 2}'.encode("latin-1"))
    with pytest.raises(VocabularyError, match=r"vocab\.json"):
        CharTokenizer.load(tmp_path / "vocab.json")


def test_a_missing_file_is_an_os_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CharTokenizer.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("vocab", [["a"], {"a": 0}, {1: 0, "<pad>": 1, "<unk>": 2}])
def test_the_constructor_checks_as_the_file_does(vocab: object) -> None:
    with pytest.raises(VocabularyError):
        CharTokenizer(vocab)  # type: ignore[arg-type]


def test_a_lone_surrogate_has_no_vocabulary() -> None:
    with pytest.raises(VocabularyError, match="lone surrogate"):
        CharTokenizer.from_text("a\ud800")
