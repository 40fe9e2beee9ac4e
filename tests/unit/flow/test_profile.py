import pytest
import yaml

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.load import load_profile, parse_set, profiles_folder
from model_serve_flow.flow.profile import FlowConfig, Recipe

PROFILES = (
    *("cpu-smollm2", "cpu-smollm2-avx2", "ci", "ci-avx2", "colab-t4"),
    *("gpu-llama-3.1-8b", "gpu-h200-llama-3.1-8b", "gpu-llama-3.3-70b"),
)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_of_the_repository_load(name):
    assert load_profile(name).name == name


def test_every_profile_is_tested():
    assert sorted(path.stem for path in profiles_folder().glob("*.yaml")) == sorted(PROFILES)


def test_unknown_profile_names_the_known():
    with pytest.raises(FlowError) as caught:
        load_profile("cpu-llama")
    assert "'cpu-llama'" in caught.value.problem
    assert all(name in caught.value.hint for name in PROFILES)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"performance.second": 3}, ["performance.second: unknown key", "seconds"]),
        (
            {"candidates.0.recipe.schema": "W8A8"},
            ["candidates.0.recipe.schema: unknown key", "scheme"],
        ),
        ({"speed": 3}, ["speed: unknown key", "performance"]),
        ({"performance.seconds": "long"}, ["performance.seconds", "'long'"]),
        ({"performance.seconds": 0}, ["performance.seconds", "greater than 0"]),
        ({"performance.concurrency": [4, 1]}, ["performance.concurrency", "must rise"]),
        (
            {"candidates.0.recipe.scheme": "W2A2"},
            [
                "candidates.0.recipe.scheme",
                "'W8A8', 'W4A16', 'W4A16_ASYM', 'W8A16', 'FP8_DYNAMIC', 'FP8'",
            ],
        ),
        ({"candidates.0.recipe.group_size": 64}, ["group_size is for W4A16"]),
        ({"calibration.data_parallel": 2}, ["data_parallel is for GPUs"]),
        (
            {"candidates.0.recipe.algorithm": "awq", "candidates.0.recipe.scheme": "FP8"},
            ["awq makes W8A8, W4A16", "not FP8"],
        ),
        (
            {"candidates.1.recipe.algorithm": "autoround"},
            ["autoround finds the scales itself: remove observer"],
        ),
        ({"candidates.0.name": "base"}, ["'base' is the name of the base model"]),
        ({"candidates.0.name": "../up"}, ["candidates.0.name", "pattern"]),
        ({"candidates.0.name": "w4a16-int4"}, ["two candidates have the same name"]),
        ({"candidates.0.source": "some/model"}, ["exactly one of 'recipe' and 'source'"]),
        ({"model.source": "some/model"}, ["exactly one of 'source'"]),
        ({"deploy.candidate": "fp8"}, ["deploy.candidate is 'fp8'", "w8a8-int8"]),
        ({"engine.max_model_len": 160}, ["do not fit into", "engine.max_model_len = 160"]),
        ({"accuracy.tasks": ["a", "a"]}, ["a task is named twice"]),
        ({"device": "tpu"}, ["device", "'cpu' or 'gpu'"]),
    ],
)
def test_bad_value_is_named_with_what_is_allowed(overrides, expected):
    with pytest.raises(FlowError) as caught:
        load_profile("cpu-smollm2", overrides)
    for text in expected:
        assert text in caught.value.problem


@pytest.mark.parametrize("key", ["seed.x", "model.name.first", "candidates.9"])
def test_override_that_leads_nowhere(key):
    with pytest.raises(FlowError, match=f"Override '{key}'"):
        load_profile("cpu-smollm2", {key: 1})


def test_override_outside_a_list_is_an_error():
    with pytest.raises(FlowError):
        load_profile("cpu-smollm2", {"candidates.9.name": "x"})


def test_overrides_reach_lists_and_sections_that_were_absent():
    config = load_profile(
        "cpu-smollm2", {"candidates.1.recipe.group_size": 32, "accuracy.limit": 5}
    )
    assert config.candidates[1].recipe.group_size == 32
    assert config.accuracy.limit == 5


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("a.b=10", 10),
        ("a.b=1.5", 1.5),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b=x=y", "x=y"),
        ("a.b=null", None),
        ("a.b=true", True),
    ],
)
def test_set_values_are_yaml(assignment, value):
    assert parse_set([assignment]) == {"a.b": value}


@pytest.mark.parametrize("assignment", ["seed", "=3", ""])
def test_set_without_key_or_value(assignment):
    with pytest.raises(FlowError, match="is not of the form key=value"):
        parse_set([assignment])


def test_set_with_broken_yaml():
    with pytest.raises(FlowError, match="seed=\\["):
        parse_set(["seed=["])


def test_environment_overrides_and_arguments_win(monkeypatch):
    monkeypatch.setenv("MODEL_SERVE_FLOW__PERFORMANCE__SECONDS", "11")
    monkeypatch.setenv("MODEL_SERVE_FLOW__SEED", "5")
    config = load_profile("cpu-smollm2", {"seed": 6})
    assert (config.performance.seconds, config.seed) == (11, 6)


def write(folder, name, document):
    path = folder / name
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return str(path)


def test_extends_lays_keys_over_the_parent(tmp_path):
    path = write(
        tmp_path,
        "mine.yaml",
        {"extends": "cpu-smollm2", "name": "mine", "performance": {"seconds": 2}},
    )
    config = load_profile(path)
    assert (config.name, config.performance.seconds, config.performance.prompt_tokens) == (
        "mine",
        2,
        128,
    )


def test_extends_unknown_parent_names_both(tmp_path):
    with pytest.raises(FlowError, match=r"mine\.yaml: extends: Unknown profile 'nobody'"):
        load_profile(write(tmp_path, "mine.yaml", {"extends": "nobody"}))


def test_extends_itself(tmp_path):
    path = tmp_path / "mine.yaml"
    with pytest.raises(FlowError, match="extends itself"):
        load_profile(write(tmp_path, "mine.yaml", {"extends": str(path)}))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not readable as YAML"), ("- a", "must hold a mapping"), ("", "must hold a mapping")],
)
def test_file_that_is_no_profile(tmp_path, text, message):
    with pytest.raises(FlowError, match=message):
        load_profile(write(tmp_path, "mine.yaml", text))


@pytest.mark.parametrize("section", ["candidates", "calibration", "accuracy", "performance"])
def test_a_section_that_is_not_needed_may_be_taken_away(section):
    absent = {section: None, **({"candidates": None} if section == "calibration" else {})}
    whole, without = load_profile("ci"), load_profile("ci", absent)
    assert whole.has(section) and not without.has(section)
    assert section == "candidates" or section not in without.model_dump()
    assert FlowConfig.model_validate(without.model_dump()) == without


@pytest.mark.parametrize(
    ("absent", "problem"),
    [
        (["accuracy", "performance"], "nothing is measured: give accuracy, performance, or both"),
        (["calibration"], "the candidates need texts: give the section calibration"),
        (["engine"], "engine: Input should be an object"),
    ],
)
def test_a_section_that_is_needed_is_asked_for(absent, problem):
    with pytest.raises(FlowError, match=problem):
        load_profile("ci", dict.fromkeys(absent))


def test_missing_key_is_named(tmp_path):
    with pytest.raises(FlowError, match="device: Field required"):
        load_profile(write(tmp_path, "mine.yaml", {"name": "mine"}))


def test_the_margins_of_the_demo_follow_from_the_number_of_its_items():
    from model_serve_flow.compare.stats.paired import smallest_detectable_drop

    config = load_profile("cpu-smollm2")
    items = 14 * config.accuracy.packaged.analogies_per_category
    drop = 100 * smallest_detectable_drop(items, discordant_share=0.06)
    assert f"{items} analogies" in config.verdict.rationale
    assert f"{drop:.1f} points" in config.verdict.rationale
    assert drop < config.verdict.suite_margin_points <= config.verdict.task_margin_points < 2 * drop


@pytest.mark.parametrize(
    ("recipe", "calibrated"),
    [
        ({"scheme": "FP8_BLOCK"}, False),
        ({"scheme": "NVFP4A16"}, False),
        ({"scheme": "FP8"}, True),
        ({"scheme": "NVFP4"}, True),
        ({"scheme": "FP8_DYNAMIC", "kv_cache_scheme": "FP8"}, True),
    ],
)
def test_static_scales_need_calibration(recipe, calibrated):
    assert Recipe(**recipe).needs_calibration == calibrated


def test_keys_that_are_not_set_change_no_digest():
    dumped = load_profile("ci").model_dump(mode="json")
    assert "data_parallel" not in dumped["calibration"]
    recipe = dumped["candidates"][0]["recipe"]
    assert not {"kv_cache_scheme", "offload", "sequential_targets"} & set(recipe)


def test_overrides_are_not_changed_by_each_other():
    recipe = {"scheme": "W8A8", "algorithm": "rtn"}
    candidates = [{"name": "one", "recipe": recipe}]
    config = load_profile("ci", {"candidates": candidates, "candidates.0.recipe.algorithm": "gptq"})
    assert config.candidates[0].recipe.algorithm == "gptq"
    assert recipe == {"scheme": "W8A8", "algorithm": "rtn"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_profile_of_a_windows_editor_in_a_folder_of_any_name(tmp_path, encoding, newline):
    folder = tmp_path / "Größe und 東京"
    folder.mkdir()
    text = newline.join(["extends: ci", "description: auf Deutsch ü", "seed: 7", ""])
    (folder / "mein profil.yaml").write_bytes(text.encode(encoding))
    config = load_profile(str(folder / "mein profil.yaml"))
    assert (config.seed, config.description) == (7, "auf Deutsch ü")
