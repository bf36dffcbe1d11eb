# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Fetches Transformers' tests before they are imported, and accepts no skip but those of `skips.py`."""

import os
from collections import Counter

import pytest

from .fetch import SuiteUnavailable, install
from .skips import accepted_as


# Named like Transformers' own files, and imported by its suite; pytest is not to collect them by themselves.
collect_ignore = ["stand_ins"]

MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
)


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by Transformers' suite")
    # Otherwise Transformers skips what it calls slow, which is its GPU tests.
    os.environ.setdefault("RUN_SLOW", "1")
    try:
        install()
    except SuiteUnavailable as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped:
        is_expected_failure = hasattr(report, "wasxfail")
        reason = "expected failure" if is_expected_failure else report.longrepr[2].removeprefix("Skipped: ")
        heading = accepted_as(item.name, reason, getattr(item.cls, "lacks", ()))
        if heading is None:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped for a reason that skips.py does not list: {reason}"
        else:
            report.user_properties.append(("accepted skip", heading))
    return report


def pytest_terminal_summary(terminalreporter):
    tests = {}
    for report in terminalreporter.getreports("skipped"):
        for name, heading in report.user_properties:
            if name == "accepted skip":
                tests[report.nodeid] = heading
    if tests:
        terminalreporter.section("skips of Transformers' suite that skips.py accepts", sep="-")
        for heading, count in sorted(Counter(tests.values()).items()):
            terminalreporter.line(f"{count:4d} {heading}")
