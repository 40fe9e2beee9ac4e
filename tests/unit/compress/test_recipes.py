import pytest
from factories import tiny_config
from transformers import LlamaConfig

from model_serve_flow.compress.recipes import check_group_size, linear_layers
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import Recipe

W4 = Recipe(scheme="W4A16", algorithm="gptq", group_size=32)


def test_group_size_that_does_not_divide_names_layer_columns_and_what_would_do():
    config = tiny_config(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3
    )
    with pytest.raises(
        FlowError, match=r"128 does not divide the 576 input columns of model\.layers\.0.*32 or 64"
    ):
        check_group_size(Recipe(scheme="W4A16", group_size=128), config)
    with pytest.raises(FlowError, match="128 does not divide"):
        check_group_size(Recipe(scheme="W4A16"), config)  # the scheme's own group size
    check_group_size(Recipe(scheme="W4A16", group_size=64), config)
    check_group_size(Recipe(scheme="W8A8"), config)


def test_group_size_of_an_ignored_layer_does_not_matter():
    config = tiny_config(intermediate_size=80)  # 32 does not divide the columns of down_proj
    with pytest.raises(FlowError, match="down_proj"):
        check_group_size(W4, config)
    check_group_size(W4.model_copy(update={"ignore": ("lm_head", "re:.*down_proj")}), config)


def test_unknown_architecture():
    class Strange(LlamaConfig):
        model_type = "strange"

    with pytest.raises(FlowError, match="strange"):
        linear_layers(Strange())
