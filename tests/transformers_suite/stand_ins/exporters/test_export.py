# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Stand-in for the export tests of Transformers, which its source distribution leaves out."""

import torch
from torch.utils import _pytree as pytree
from transformers.testing_utils import torch_device


class ExportTesterMixin:
    """Base of `ModelTesterMixin`; `test_torch_exportable = False` turns it off for a family."""

    test_torch_exportable = True

    def test_torch_export(self):
        """The exported program of every model class computes what the model computes."""
        if not self.test_torch_exportable:
            self.skipTest(reason="test_torch_exportable is set to `False`")
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            inputs = self._prepare_for_class(inputs, model_class)
            if hasattr(config, "use_cache"):
                config.use_cache = False
            model = model_class(config).to(torch_device).eval()
            with self.subTest(model_class.__name__), torch.no_grad():
                exported = torch.export.export(model, args=(), kwargs=inputs, strict=False)
                expected = pytree.tree_leaves(model(**inputs))
                actual = pytree.tree_leaves(exported.module()(**inputs))
                self.assertGreater(len(expected), 0)
                torch.testing.assert_close(actual, expected)
