# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What time_series/series_data.py reads and refuses, and how series become inputs of a model."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoFeatureExtractor

from ea_hf import EADCTransformerConfig, EADCTransformerFeatureExtractor


pytest.importorskip("aeon")

from series_data import (
    SeriesSplit,
    bundled_datasets,
    dataset_files,
    load_files,
    read_ts,
    train_validation_splits,
)


HEADER = """# A comment
@problemName tiny
@timeStamps false
@missing true
@univariate false
@equalLength false
@classLabel true a b
@data
"""
SERIES = ["1,2,3:4,?,6:a", "1.5:2.5:b", "-1,1e2:0,nan:a", "3,4:5,6:b"]


def write_ts(path: Path, lines: list[str], header: str = HEADER) -> str:
    path.write_text(header + "\n".join(lines) + "\n")
    return str(path)


def write_table(path: Path, **columns: list) -> str:
    table = pd.DataFrame(
        {"series": ["x", "x", "y", "y"], "time": [2, 1, 1, 2], "one": [1.0, 2.0, 3.0, 4.0], "label": list("aabb")}
        | columns
    ).dropna(axis=1, how="all")
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    return str(path)


# Reading


@pytest.mark.parametrize(
    "name, sizes, channels, task",
    [
        ("JapaneseVowels", (270, 370), 12, "classification"),
        ("BasicMotions", (40, 40), 6, "classification"),
        ("ItalyPowerDemand", (67, 1029), 1, "classification"),
        ("OSULeaf", (200, 242), 1, "classification"),
        ("ACSF1", (100, 100), 1, "classification"),
        ("Covid3Month", (140, 61), 1, "regression"),
        ("CardanoSentiment", (74, 33), 2, "regression"),
    ],
)
def test_bundled_data_sets_need_no_network(name, sizes, channels, task, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asks the network"))
    assert name in bundled_datasets()
    data = load_files(dataset_files(name))
    assert (len(data.splits["train"]), len(data.splits["test"])) == sizes
    assert {values.shape[1] for split in data.splits.values() for values in split.series} == {channels}
    assert data.task == task


def test_unknown_data_sets_name_those_that_are_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"'Nothing', which aeon does not bundle; it has ACSF1, .*--dataset_dir"
    ):
        dataset_files("Nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no Nothing_TRAIN\.ts"):
        dataset_files("Nothing", str(tmp_path))
    for split in ("TRAIN", "TEST"):
        write_ts(tmp_path / f"Nothing_{split}.ts", SERIES)
    assert len(load_files(dataset_files("Nothing", str(tmp_path))).splits["test"]) == 4


def test_a_ts_file_keeps_lengths_signs_and_gaps(tmp_path):
    file = read_ts(write_ts(tmp_path / "tiny.ts", SERIES))
    np.testing.assert_equal(file.series[0], [[1, 4], [2, np.nan], [3, 6]])
    np.testing.assert_equal(file.series[2], [[-1, 0], [100, np.nan]])
    assert [len(values) for values in file.series] == [3, 1, 2, 2]
    assert file.labels[:, 0].tolist() == ["a", "b", "a", "b"] and file.names[0] == "line 9"


def test_comments_of_other_encodings_are_read(tmp_path):
    path = tmp_path / "tiny.ts"
    path.write_bytes(("# Müller\n" + HEADER + "\n".join(SERIES)).encode("latin-1"))
    assert len(read_ts(str(path)).series) == 4


@pytest.mark.parametrize(
    "line, message",
    [
        ("1,2:3,4", r"it has 1 channels, but line 9 has 2"),
        ("1,2:3,x4:a", r"'x4' in channel 1, step 1, is no number"),
        ("1,2:3,,4:a", r"'' in channel 1, step 1, is no number"),
        ("1,2:3:a", r"its channels have \[2, 1\] steps"),
        ("1,2:a", "it has 1 channels, but line 9 has 2"),
        ("1,2:3,4:c", "its class, 'c', is not among those of @classLabel"),
        ("1,2", "it has no label after a colon; it may be cut off"),
        ("", "it is empty, with more series after it"),
        ("\x00\x01", "it has no label"),
    ],
)
def test_a_corrupt_line_is_named(line, message, tmp_path):
    path = write_ts(tmp_path / "tiny.ts", [*SERIES[:2], line, SERIES[3]])
    with pytest.raises(ValueError, match=f"{path}, line 11: .*{message}"):
        read_ts(path)


def test_corrupt_headers_are_told(tmp_path):
    for number, (content, message) in enumerate(
        {
            "@problemName tiny\n": "has no @data line",
            "": "has no @data line",
            "hello\n@data\n1:a\n": "line 1: 'hello' stands before @data",
            HEADER: "has no series after @data",
            HEADER.replace("@equalLength false", "@equalLength true")
            + "1:1:a\n1,2:1,2:a\n": "line 10: it has 2 steps",
            HEADER.replace("@classLabel true a b", "@targetlabel true")
            + "1:1:2.5\n1:1:b\n": "line 10: its target, 'b'",
            HEADER.replace("@timeStamps false", "@timeStamps true") + "0,-1.5:(0,1.5):a\n": "line 9: channel 0 is not",
            HEADER.replace("@timeStamps false", "@timeStamps true")
            + "(0,1),(0,2):(0,1),(0,2):a\n": "line 9: its timestamps do not increase",
        }.items()
    ):
        path = tmp_path / f"{number}.ts"
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_ts(str(path))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_in_long_format(suffix, tmp_path):
    path = write_table(tmp_path / f"train{suffix}", two=[1, None, 3, 4])
    data = load_files({"train": path})
    assert data.channels == ["one", "two"] and data.labels == ["a", "b"] and data.task == "classification"
    np.testing.assert_equal(data.splits["train"].series[0], [[2, np.nan], [1, 1]])  # by time
    assert data.splits["train"].names == ["x", "y"] and data.splits["train"].labels.tolist() == [0, 1]
    targets = write_table(tmp_path / f"targets{suffix}", label=[0.5, 0.5, 1.5, 1.5], other=[1, 1, 2, 2])
    data = load_files({"train": targets}, label_columns=["label", "other"])
    assert data.task == "regression" and data.splits["train"].labels.tolist() == [[0.5, 1], [1.5, 2]]
    whole = write_table(tmp_path / f"whole{suffix}", label=[3, 3, 12, 12])
    assert load_files({"train": whole}).labels == ["3", "12"]
    assert load_files({"train": whole}, task="regression").task == "regression"


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"one": [1, 2, "x", 4]}, "row 3, column 'one': 'x' is no number"),
        ({"series": ["x", None, "y", "y"]}, "row 2: column 'series' is empty"),
        ({"time": [1, 1, 1, 2]}, "row 2: series 'x' has another row of the same time, 1"),
        ({"time": ["a", "b", "c", "d"]}, "column 'time' holds neither numbers nor dates"),
        ({"label": list("abbb")}, "series 'x' must have one label in all its rows; it has 'b', 'a'"),
        ({"one": [None] * 4}, "it needs channels"),
        ({"one": [1, np.inf, 3, 4]}, r"x of .* has the value inf at step 0 \(counted from 0\) in channel one"),
        ({"label": [0.5, 0.5, np.inf, np.inf]}, "The target of y of .* is inf"),
    ],
)
def test_bad_tables_are_refused(columns, message, tmp_path):
    path = write_table(tmp_path / "train.csv", **columns)
    with pytest.raises(ValueError, match=message):
        load_files({"train": path})


def test_files_must_fit_each_other(tmp_path):
    train = write_table(tmp_path / "train.csv", two=[1, 2, 3, 4])
    swapped = pd.read_csv(train)[["two", "one", "series", "label", "time"]]
    swapped.to_csv(tmp_path / "swapped.csv", index=False)
    data = load_files({"train": train, "test": str(tmp_path / "swapped.csv")})
    np.testing.assert_equal(data.splits["train"].series, data.splits["test"].series)
    fewer = write_table(tmp_path / "fewer.csv")
    with pytest.raises(ValueError, match=r"fewer.csv has no column 'two'; it has 'series'"):
        load_files({"train": train, "test": fewer})
    other = write_table(tmp_path / "other.csv", two=[1, 2, 3, 4], label=list("aacc"))
    with pytest.raises(ValueError, match=r"has classes that .* does not have: 'c'"):
        load_files({"train": train, "test": other})
    with pytest.raises(FileNotFoundError, match=r"--test_file nowhere\.csv does not exist"):
        load_files({"train": train, "test": "nowhere.csv"})
    with pytest.raises(ValueError, match=r"is neither \.ts nor"):
        load_files({"train": __file__})


def write_rows(path: Path, columns: dict[str, list], **kwargs) -> str:
    """Three series of four steps; the columns stand beside "series", "a", "b" and "label"."""
    generator = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "series": np.repeat(["x", "y", "z"], 4),
            "a": generator.normal(size=12).round(3),
            "b": generator.normal(size=12).round(3),
            "label": np.repeat(["up", "down", "up"], 4),
        }
        | columns
    )
    table.to_csv(path, **{"index": False, **kwargs})
    return str(path)


@pytest.mark.parametrize("name", ["", "  ", "Unnamed: 0", "Unnamed: 0.1", "level_0"])
def test_numbers_of_rows_are_no_channel(name, tmp_path):
    path = write_rows(tmp_path / "train.csv", {name: list(range(12))})
    data = load_files({"train": path})
    assert data.channels == ["a", "b"]
    assert any("numbers of rows" in note and "channels 'a', 'b'" in note for note in data.notes)


def test_an_index_that_pandas_writes_is_no_channel(tmp_path):
    path = write_rows(tmp_path / "train.csv", {}, index=True)
    assert load_files({"train": path}).channels == ["a", "b"]
    table = pd.read_csv(path, index_col=0).sample(frac=1, random_state=0)
    table.to_csv(tmp_path / "shuffled.csv")
    assert load_files({"train": str(tmp_path / "shuffled.csv")}).channels == ["a", "b"]
    table.set_index("series").to_parquet(tmp_path / "named.parquet")
    assert load_files({"train": str(tmp_path / "named.parquet")}).channels == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("timestamp", [5, 1, 3, 2] * 3, "by its name a time"),
        ("sampleTime", [5, 1, 3, 2] * 3, "by its name a time"),
        ("when", [0, 0.5, 0.7, 2] * 3, "increases within every series"),
        ("minutes", list(range(12)), "increases within every series"),
        ("subject_id", [5, 1, 3, 2] * 3, "by its name an id"),
        ("index", list(range(12)), "by its name an id"),
        ("patient", [7] * 4 + [3] * 4 + [9] * 4, "the same in all rows of a series"),
        ("grade", [0] * 4 + [1] * 4 + [0] * 4, "the same in all rows of a series"),
        ("class", [5, 1, 3, 2] * 3, "by its name a label"),
        ("Unnamed: 5", [0.5, 1, 3, 2] * 3, "has no name"),
        ("site", list("abca") * 3, "holds no numbers, but 'a'"),
        ("day of visit", ["2026-01-01"] * 12, "holds no numbers, but '2026-01-01'"),
    ],
)
def test_a_column_that_may_be_no_channel_is_refused_until_the_channels_are_named(name, values, why, tmp_path):
    path = write_rows(tmp_path / "train.csv", {name: values})
    with pytest.raises(ValueError, match=rf"{why}.*--channel_columns"):
        load_files({"train": path})
    data = load_files({"train": path}, channel_columns=["b", "a"])
    assert data.channels == ["b", "a"] and f"left out {name!r}" in data.notes[0]
    if name not in ("site", "day of visit"):
        assert load_files({"train": path}, channel_columns=["a", name]).channels == ["a", name]


def test_ordinary_channels_are_taken(tmp_path):
    path = write_rows(
        tmp_path / "train.csv", {"x": [1, 1, 1, 1] * 3, "y": list(range(12))[::-1], "z": [1, 1, 2, 3] * 3}
    )
    assert load_files({"train": path}).channels == ["a", "b", "x", "y", "z"]


def test_other_files_give_the_channels_by_name(tmp_path):
    train = write_rows(tmp_path / "train.csv", {})
    test = write_rows(tmp_path / "test.csv", {"other": [5, 1, 3, 2] * 3})
    pd.read_csv(test)[["other", "b", "label", "a", "series"]].to_csv(test, index=False)
    data = load_files({"train": train, "test": test})
    np.testing.assert_equal(data.splits["train"].series, data.splits["test"].series)
    assert "left out 'other'" in " ".join(data.notes)


@pytest.mark.parametrize("names", [["NA", "None"], ["null", "nan"], ["1", "nan"], ["007", "7"], ["true", "True"]])
def test_names_of_classes_and_series_are_texts(names, tmp_path):
    (tmp_path / "train.csv").write_text(
        f"series,one,label\n001,1,{names[0]}\n001,,{names[0]}\n01,NA,{names[1]}\n01,4,{names[1]}\n"
    )
    data = load_files({"train": str(tmp_path / "train.csv")})
    assert data.task == "classification" and sorted(data.labels) == sorted(names)
    assert data.splits["train"].names == ["001", "01"]
    np.testing.assert_equal(data.splits["train"].series[1], [[np.nan], [4]])


@pytest.mark.parametrize("hole", ["nan", "NA", "inf"])
def test_one_hole_among_decimal_labels_does_not_make_classes(hole, tmp_path):
    (tmp_path / "train.csv").write_text(f"series,one,label\nx,1,0.5\ny,2,{hole}\nz,3,2\n")
    with pytest.raises(ValueError, match=hole):
        load_files({"train": str(tmp_path / "train.csv")})


@pytest.mark.parametrize("times", [[0, 1, 10], ["2026-01-01T00:00", "2026-01-01T01:00", "2026-01-01T10:00"]])
def test_gaps_are_filled_by_time(times, tmp_path):
    path = tmp_path / "train.csv"
    pd.DataFrame({"series": "x", "time": times[::-1], "one": [10, None, 0.0]}).to_csv(path, index=False)
    split = load_files({"train": str(path)}).splits["train"]
    extractor = EADCTransformerFeatureExtractor(max_length=3)
    (filled,) = extractor.prepare(split.series, split.names, split.times)
    np.testing.assert_allclose(filled[:, 0], [0, 1, 10])
    np.testing.assert_allclose(extractor(split.series)["past_values"][0, :, 0], [0, 5, 10])  # without times
    with pytest.raises(ValueError, match="has 3 steps; it needs as many times, finite and increasing"):
        extractor(split.series, times=[np.array([0, 1, 1])])


def test_words_of_a_ts_file_stay_as_they_are(tmp_path):
    header = HEADER.replace("@classLabel true a b", "@classLabel true banana A a")
    lines = ["1,2:3,4:banana", "1:2:A", "1:2: a", "1:?:a", "", "  "]
    path = tmp_path / "tiny.ts"
    path.write_bytes(b"\xef\xbb\xbf" + (header + "\n".join(lines)).encode())
    data = load_files({"train": str(path)})
    assert data.labels == ["A", "a", "banana"] and data.splits["train"].labels.tolist() == [2, 0, 1, 1]


def test_timestamps_of_a_ts_file_are_kept(tmp_path):
    header = HEADER.replace("@timeStamps false", "@timeStamps true")
    file = read_ts(write_ts(tmp_path / "tiny.ts", ["(0,-1.5),(1,?),(10,1e1):(0,1),(1,2),(10,3):a"], header))
    np.testing.assert_equal(file.series[0], [[-1.5, 1], [np.nan, 2], [10, 3]])
    assert file.times[0].tolist() == [0, 1, 10]


def test_the_log_tells_the_kind_of_problem(tmp_path):
    notes = load_files({"train": write_rows(tmp_path / "train.csv", {})}).notes
    assert notes[0].endswith("channels 'a', 'b'; series 'series'; no time, the rows are in order; label 'label'.")
    assert notes[1].endswith("classification, 2 classes; 'down' 1, 'up' 2.")
    targets = write_rows(tmp_path / "targets.csv", {"label": [0.5] * 4 + [1.5] * 4 + [3] * 4})
    assert load_files({"train": targets}).notes[1].endswith("regression; 'label' from 0.5 to 3.")


def test_a_table_with_another_separator_or_more_cells_than_names_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("series;one;label\nx;1;a\n")
    with pytest.raises(ValueError, match="must be separated by commas"):
        load_files({"train": str(tmp_path / "train.csv")})
    (tmp_path / "train.csv").write_text("series,one,label\nx,1,a,\ny,2,b,\n")
    with pytest.raises(ValueError, match="more cells than its header"):
        load_files({"train": str(tmp_path / "train.csv")})


# Splits


def test_splits_keep_the_shares_of_the_classes():
    labels = np.repeat([0, 1, 2], [20, 40, 10])
    split = SeriesSplit([np.zeros((2, 1))] * 70, labels, [""] * 70)
    splits = train_validation_splits(split, "classification", 3, 0.3, 1337)
    for train, validation in splits:
        assert np.bincount(labels[validation]).tolist() == [6, 12, 3]
        assert sorted([*train, *validation]) == list(range(70))
    assert len({tuple(validation) for _, validation in splits}) == 3
    again = train_validation_splits(split, "classification", 3, 0.3, 1337)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(splits, again, strict=True))


def test_a_class_with_one_example_stays_in_training(caplog):
    split = SeriesSplit([np.zeros((2, 1))] * 21, np.array([0] * 10 + [2] + [1] * 10), [""] * 21)
    with caplog.at_level(logging.WARNING):
        splits = train_validation_splits(split, "classification", 3, 0.3, 1, ["a", "b", "c"])
    assert all(10 in train and 10 not in validation for train, validation in splits)
    assert "1 classes have one example, which is never validated on: 'c'" in caplog.text
    few = SeriesSplit([np.zeros((2, 1))] * 4, np.array([0, 0, 1, 1]), [""] * 4)
    with pytest.raises(ValueError, match=r"cannot be divided with a share of 0\.1 for validation"):
        train_validation_splits(few, "classification", 3, 0.1, 1)


# From series to inputs


def test_standardization_is_that_of_the_training_values():
    generator = np.random.default_rng(0)
    series = [generator.normal([3, -2], [5, 0.1], (length, 2)) for length in (4, 9, 6)]
    series[1][2, 0] = np.nan
    extractor = EADCTransformerFeatureExtractor.fit(series)
    values = np.concatenate(series)
    np.testing.assert_allclose(extractor.feature_mean, np.nanmean(values, axis=0))
    np.testing.assert_allclose(extractor.feature_scale, np.nanstd(values, axis=0))
    assert extractor.max_length == 9
    batch = extractor([series[0], series[2]])
    assert batch["past_values"].shape == (2, 6, 2) and batch["past_observed_mask"].sum(1).tolist() == [4, 6]
    expected = (series[0] - np.nanmean(values, axis=0)) / np.nanstd(values, axis=0)
    torch.testing.assert_close(batch["past_values"][0, :4], torch.from_numpy(expected).float())
    assert (batch["past_values"][0, 4:] == 0).all()


def test_missing_values_are_interpolated_in_their_series():
    training = [np.array([[0.0, 1, 5], [2, 1, 7]])]
    extractor = EADCTransformerFeatureExtractor.fit(training)
    gaps = np.array(
        [[np.nan, 1, np.nan], [0, 1, np.nan], [np.nan, np.nan, np.nan], [6, 1, np.nan], [np.nan, 1, np.nan]]
    )
    extractor.max_length = 5
    (filled,) = extractor.prepare([gaps])
    np.testing.assert_allclose(filled[:, 0], (np.array([0, 0, 3, 6, 6]) - 1) / 1)
    assert (filled[:, 1] == 0).all()  # constant: centred, not divided by 0
    assert (filled[:, 2] == 0).all()  # nothing is known: the mean of the training series
    assert np.isnan(gaps).sum() == 9  # the input stays as it is


def test_constant_and_missing_channels_stay_finite(caplog):
    training = [np.column_stack([np.full(7, 0.1), np.full(7, np.nan), np.arange(7.0)])] * 3
    extractor = EADCTransformerFeatureExtractor.fit(training)
    assert "Channels without any value in training are taken as 0: [1]" in caplog.text
    (prepared,) = extractor.prepare([np.array([[0.1, 5.0, 1.0], [0.6, np.nan, 2.0]])])
    np.testing.assert_allclose(prepared[:, :2], [[0, 0], [0.5, 0]], atol=1e-6)
    assert np.isfinite(prepared).all()


def test_longer_series_are_cut_and_pooled_ones_averaged(caplog):
    training = [np.arange(10.0), np.arange(4.0)]
    extractor = EADCTransformerFeatureExtractor.fit(training, max_steps=4)
    assert (extractor.pooling, extractor.max_length) == (3, 4)
    (pooled,) = extractor.prepare([np.arange(13.0)])
    raw = pooled[:, 0] * extractor.feature_scale[0] + extractor.feature_mean[0]
    np.testing.assert_allclose(raw, [1, 4, 7, 10], rtol=1e-6)
    assert "1 of 1 series are longer than the longest of training; only their first 12 steps are taken" in caplog.text


@pytest.mark.parametrize(
    "values, message",
    [
        ([[1.0, 2.0]], "has 2 channels, but the training series have 1"),
        (np.zeros((0, 1)), "has no step"),
        ([[1.0], [-np.inf]], r"has the value -inf at step 1 \(counted from 0\) in channel 0"),
        ([[1e300]], "is too large near step 0 in channel 0"),
        (["a"], "holds something else than numbers"),
        (np.zeros((2, 1, 1)), r"has the shape \(2, 1, 1\)"),
    ],
)
def test_series_that_cannot_be_used_are_named(values, message):
    extractor = EADCTransformerFeatureExtractor.fit([np.array([[0.0], [1.0]])])
    with pytest.raises(ValueError, match=f"the bad one {message}"):
        extractor.prepare([values], ["the bad one"])


def test_values_too_large_for_a_deviation_are_refused():
    with pytest.raises(ValueError, match=r"Channel 1 has values too large for a standard deviation, up to 1e\+200"):
        EADCTransformerFeatureExtractor.fit([np.array([[0.0, 1e200], [1.0, -1e200]])])
    with pytest.raises(ValueError, match="There is no series"):
        EADCTransformerFeatureExtractor.fit([])


def test_targets_are_standardized_and_restored():
    series, targets = [np.arange(3.0)] * 4, np.array([[1.0, 5], [2, 5], [3, 5], [6, 5]])
    extractor = EADCTransformerFeatureExtractor.fit(series, targets)
    scaled = extractor.scale_targets(targets)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 0])
    np.testing.assert_allclose(extractor.restore_targets(scaled), targets)
    with pytest.raises(ValueError, match="The target of Series 2 is not a finite number"):
        EADCTransformerFeatureExtractor.fit(series, np.array([[1.0], [2], [np.nan], [3]]))


def test_it_is_saved_beside_a_model(tmp_path):
    extractor = EADCTransformerFeatureExtractor.fit([np.random.default_rng(0).normal(size=(8, 3))], max_steps=4)
    extractor.save_pretrained(tmp_path)
    EADCTransformerConfig(num_input_channels=3).save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is EADCTransformerFeatureExtractor
    assert loaded.to_dict() == extractor.to_dict()
