"""Trained models for images of another number of channels."""

from __future__ import annotations

from c2f_zoo.model import C2FModel, build
from c2f_zoo.zoo.resolve import with_channels


def replace_input(model: C2FModel, in_chans: int) -> C2FModel:
    """Return a trained model for images of another number of channels.

    The weights of the first layer are adapted as timm does: for one channel they are summed over the channels, for more
    than three they are repeated and scaled. All other weights are equal.

    Args:
        model: the model, for images of three channels; it is not changed.
        in_chans: the number of channels, at least 1.

    Raises:
        ValueError: the model has another number of channels, or timm cannot adapt its first layer.

    Examples:
        >>> model = create_model("mlph_tiny_critters", pretrained=True).eval()
        >>> x = torch.rand(1, 1, 96, 96)
        >>> grey = replace_input(model, 1).eval()
        >>> torch.allclose(grey(x)["species"], model(x.expand(-1, 3, -1, -1))["species"], atol=1e-5)
        True
    """
    from timm.models import adapt_input_conv

    channels = model.config.preprocessing.input_size[0]
    if channels == in_chans:
        return model
    if channels != 3:
        raise ValueError(f"the weights expect {channels} channels; only weights for 3 can be adapted to {in_chans}")
    adapted = build(with_channels(model.config, in_chans))
    expected = adapted.state_dict()
    weights = {name: weight for name, weight in model.state_dict().items() if name in expected}
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            try:
                weights[name] = adapt_input_conv(in_chans, weight)
            except (NotImplementedError, AssertionError) as error:
                raise ValueError(f"timm cannot adapt {name} {tuple(weight.shape)} to {in_chans} channels") from error
    adapted.load_state_dict(weights)
    return adapted
