"""Post-training quantisation to INT8: ranges of activations are measured on a domain's own images.

Weights have a scale per output channel, and batch norm's scale goes into it. So batch norm is
folded everywhere, and the codes of a shared convolution's weights are still the same for all
domains, if only they are rounded to their steps first (`mdl.device.plain.rounded`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mdl.device.extra import lacks_extra
from mdl.device.preparation import Colours
from mdl.device.quiet import quietly


def quantised_program(path: nn.Module, images: Colours) -> torch.export.ExportedProgram:
    """A path [1, 3, s, s] -> [1, classes] as XNNPACK computes it in INT8.

    images: of training, [n, 3, s, s], that ranges are measured on.
    Raises UserError where executorch is not installed.
    """
    with quietly():
        try:
            from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
                XNNPACKQuantizer,
                get_symmetric_quantization_config,
            )
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        except ImportError as error:
            raise lacks_extra(error) from error
        batch = torch.from_numpy(images)
        quantizer = XNNPACKQuantizer().set_global(
            get_symmetric_quantization_config(is_per_channel=True)
        )
        any_number = ({0: torch.export.Dim("n", min=1, max=4096)},)
        exported = torch.export.export(path, (batch,), dynamic_shapes=any_number)
        prepared = prepare_pt2e(exported.module(), quantizer)
        with torch.no_grad():
            prepared(batch)  # at once: observers take long, whatever the number of images
        converted = convert_pt2e(prepared)
        _forget_unused(converted)
        return torch.export.export(converted, (batch[:1].clone(),))


def _forget_unused(module: torch.fx.GraphModule) -> None:
    """Takes away the weights that codes have replaced, which would be exported beside them."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)


def quantised_graph(model: Any, images: Colours) -> Any:
    """An onnx.ModelProto in INT8, quantised and dequantised around its operations (QDQ).

    images: of training, [n, 3, s, s], that ranges are measured on.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    except ImportError as error:
        raise lacks_extra(error) from error

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Colours] | None:
            image = next(self.left, None)
            return None if image is None else {"image": image[None]}

    with quietly(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "quantised.onnx"
        quantize_static(
            model,
            file,
            Images(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(file)
