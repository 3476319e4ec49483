from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from avalanche.models import MTSimpleMLP, SimpleCNN, SimpleMLP, SlimResNet18, as_multitask
from torch import Tensor, nn

from protocl.strategies.plugin.classifier_layer import find_classifier
from protocl.strategies.plugin.feature_hook import (
    FeatureHook,
    joined,
    refuse_compiled,
    undisturbed,
)
from tests.strategies.small import build_net


def named(**layers: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(layers))


class TestFindClassifier:
    @pytest.mark.parametrize("name", ["classifier", "fc", "head", "linear"])
    def test_common_names(self, name: str) -> None:
        layer = nn.Linear(4, 2)
        assert find_classifier(named(body=nn.Linear(3, 4), **{name: layer})) is layer

    def test_an_explicit_name_wins_and_may_be_nested(self) -> None:
        inner = nn.Linear(4, 2)
        model = named(body=named(probe=inner), classifier=nn.Linear(2, 2))
        assert find_classifier(model, "body.probe") is inner

    def test_timm_says_where_its_classifier_is(self) -> None:
        layer = nn.Linear(4, 2)
        model = named(classifier=nn.Linear(3, 4), head=named(fc=layer))
        model.pretrained_cfg = {"classifier": "head.fc"}  # type: ignore[assignment]
        assert find_classifier(model) is layer

    def test_a_wrapped_model(self) -> None:
        net = build_net()
        assert find_classifier(nn.Sequential(net)) is net.classifier

    def test_the_end_of_a_sequence(self) -> None:
        layer = nn.Linear(4, 2)
        body = nn.Sequential(nn.Linear(3, 3), named(fc=nn.Linear(3, 4)))
        assert find_classifier(nn.Sequential(body, nn.ReLU(), nn.Sequential(layer))) is layer

    @pytest.mark.parametrize("model", [SimpleMLP(), SimpleCNN(), MTSimpleMLP(), SlimResNet18(10)])
    def test_models_of_avalanche(self, model: nn.Module) -> None:
        assert find_classifier(model) is (
            model.linear if isinstance(model, type(SlimResNet18(10))) else model.classifier
        )

    def test_no_candidate_is_an_error_that_lists_the_linear_layers(self) -> None:
        with pytest.raises(ValueError, match=r"give layer=NAME.*linear layers are: out"):
            find_classifier(named(out=nn.Linear(4, 2), answer=nn.Softmax(1)))

    def test_two_candidates_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="cannot tell which layer"):
            find_classifier(named(a=named(fc=nn.Linear(2, 2)), b=build_net(), c=nn.ReLU()))

    def test_a_wrong_name_is_an_error_that_lists_the_linear_layers(self) -> None:
        with pytest.raises(ValueError, match=r"layer='clasifier' is not.*classifier"):
            find_classifier(build_net(), "clasifier")


class TestFeatureHook:
    def test_reads_what_enters_the_layer_and_leaves_no_hook(self) -> None:
        net, hook, x = build_net().eval(), FeatureHook(), torch.rand(5, 1, 8, 8)
        hook.open(net.classifier)
        net(x)
        (seen,) = hook.close()
        assert torch.equal(seen, net.features(x))
        assert not net.classifier._forward_pre_hooks
        assert hook.close() == []

    def test_what_an_interrupted_pass_left_is_dropped(self) -> None:
        net, hook, x = build_net().eval(), FeatureHook(), torch.rand(5, 1, 8, 8)
        hook.open(net.classifier)
        net(x)
        hook.open(net.classifier)
        net(x[:2])
        assert [len(part) for part in hook.close()] == [2]
        assert not net.classifier._forward_pre_hooks

    def test_a_layer_that_works_in_place_does_not_spoil_the_features(self) -> None:
        layer = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2))
        hook, x = FeatureHook(), torch.tensor([[-1.0, 2.0, -3.0]])
        hook.open(layer)
        layer(x.clone())
        assert torch.equal(hook.close()[0], x)

    def test_maps_of_features_are_flattened_and_keywords_read(self) -> None:
        class Layer(nn.Module):
            def forward(self, features: Tensor) -> Tensor:
                return features.sum((1, 2, 3))

        layer, hook = Layer(), FeatureHook()
        hook.open(layer)
        layer(features=torch.rand(2, 3, 4, 4))
        assert hook.close()[0].shape == (2, 48)

    def test_a_multi_task_model_calls_the_layer_once_a_task(self) -> None:
        model = as_multitask(SimpleMLP(num_classes=3, input_size=4), "classifier")
        model.classifier.classifiers["1"] = model.classifier.classifiers["0"]
        model.classifier.masking = False
        tasks, x, hook = torch.tensor([1, 0, 1, 0, 0]), torch.rand(5, 4), FeatureHook()
        model.eval()
        model.max_class_label = 3
        hook.open(find_classifier(model))
        model(x, tasks)
        seen = hook.close()
        assert len(seen) == 2
        torch.testing.assert_close(joined(seen, tasks), model.model(x))

    @pytest.mark.parametrize("tasks", [None, torch.tensor([0, 0, 1])])
    def test_calls_that_do_not_account_for_the_samples_are_an_error(
        self, tasks: Tensor | None
    ) -> None:
        with pytest.raises(RuntimeError, match="layer=NAME"):
            joined([torch.rand(2, 3), torch.rand(2, 3)], tasks)


class TestRefuseCompiled:
    def test_a_compiled_model(self) -> None:
        with pytest.raises(ValueError, match=r"the model is compiled.*_orig_mod"):
            refuse_compiled(torch.compile(build_net()))

    def test_a_model_with_a_compiled_part(self) -> None:
        net = build_net()
        net.features.compile()
        with pytest.raises(ValueError, match="layer 'features' is compiled"):
            refuse_compiled(net)

    def test_a_plain_model_is_accepted(self) -> None:
        refuse_compiled(build_net())


class TestUndisturbed:
    def test_every_submodule_gets_its_own_mode_back_even_after_an_error(self) -> None:
        net = build_net().train()
        net.features[2].eval()  # a BatchNorm that the user froze
        modes = [module.training for module in net.modules()]

        def fail() -> None:
            with undisturbed(net):
                assert not any(module.training for module in net.modules())
                assert not torch.is_grad_enabled()
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert torch.is_grad_enabled()
        assert [module.training for module in net.modules()] == modes

    def test_random_numbers_drawn_inside_were_never_drawn(self) -> None:
        before = torch.get_rng_state()
        with undisturbed(nn.Identity()):
            torch.rand(3)
        assert torch.equal(torch.get_rng_state(), before)


class TestFeaturesOnly:
    """Where nobody reads the model's output, its classifier is not computed."""

    def run(self, model: nn.Module, layer: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
        hook = FeatureHook(features_only=True)
        hook.open(layer)
        try:
            output = model(x)
        finally:
            seen = hook.close()
        return seen, output

    def test_a_linear_layer_is_left_out_and_comes_back(self) -> None:
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(6, 5)
        expected = model(x)
        (features,), output = self.run(model, model[2], x)
        torch.testing.assert_close(features, model[:2](x), rtol=0, atol=0)
        assert torch.equal(output, torch.zeros(6, 3))
        assert torch.equal(model(x), expected)
        assert "forward" not in vars(model[2])

    def test_a_layer_that_is_watched_or_patched_runs(self) -> None:
        model, x = nn.Sequential(nn.Linear(5, 3)), torch.randn(2, 5)
        expected = model(x)
        model[0].register_forward_hook(lambda *_: None)
        assert torch.equal(self.run(model, model[0], x)[1], expected)
        patched = nn.Sequential(nn.Linear(5, 3))
        patched[0].forward = lambda x: x.sum(1, keepdim=True)
        assert torch.equal(self.run(patched, patched[0], x)[1], x.sum(1, keepdim=True))
        assert "forward" in vars(patched[0])

    def test_an_interrupted_pass_leaves_the_layer_as_it_was(self) -> None:
        model = nn.Sequential(nn.Linear(5, 3), nn.Linear(4, 2))
        with pytest.raises(RuntimeError):
            self.run(model, model[0], torch.randn(2, 5))
        assert "forward" not in vars(model[0])
        assert not model[0]._forward_pre_hooks
