# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The code that travels with a checkpoint, for Auto classes and pipelines with `trust_remote_code=True`.

A configuration's file says in `auto_map` and `custom_pipelines` which classes the files beside it have. A file travels with
those that it imports as `from .name import x`. This file travels too, so that whoever has loaded a checkpoint by its own
code can save it with that code.
"""

import copy
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from .undocumented import fetch_code, imported_files


# Attributes with which a configuration tells of the code beside it.
CODE_REFERENCES = ("auto_map", "custom_pipelines")


def save_config_with_code(
    config: PreTrainedConfig, references: dict[str, dict[str, Any]], save_directory: str | os.PathLike
) -> None:
    """Saves a configuration and, beside it, the code that it refers to.

    Args:
        config: remains as it is; what is saved of it has the references.
        references: values of `CODE_REFERENCES`. A class is "module.Class", or "user/model--module.Class" if its code is in
            another repository; it is saved beside the checkpoint all the same.
    """
    saved, references = copy.copy(config), copy.deepcopy(references)
    repositories: dict[str, str | None] = {}  # by module

    def localize(reference: str) -> str:
        repository, _, class_path = reference.rpartition("--")
        module = class_path.split(".")[0]
        repositories[module] = repository or repositories.get(module)
        return class_path

    for auto_name, reference in references.get("auto_map", {}).items():
        references["auto_map"][auto_name] = localize(reference)
    for pipeline in references.get("custom_pipelines", {}).values():
        pipeline["impl"] = localize(pipeline["impl"])
        # Transformers puts classes in the place of their names.
        pipeline["pt"] = [getattr(auto_class, "__name__", auto_class) for auto_class in pipeline["pt"]]
    vars(saved).update(references)
    PreTrainedConfig.save_pretrained(saved, save_directory)
    for module, repository in repositories.items():
        file = code_file(config, module, repository)
        for source in (file, *imported_files(file)):
            shutil.copyfile(source, Path(save_directory, source.name))


def code_file(config: PreTrainedConfig, module: str, repository: str | None = None) -> Path:
    """The file of a module that travels with a configuration.

    Args:
        repository: where it is, if not beside the configuration.
    """
    file = Path(sys.modules[type(config).__module__].__file__).with_name(f"{module}.py")
    if not file.exists():  # remote code of which this file is not loaded yet
        file = fetch_code(repository or config.name_or_path, file.name)
    return file
