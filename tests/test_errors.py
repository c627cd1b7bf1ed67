"""The error tree: one code each, one way back from a code, and for every code an input that reaches it."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet import errors
from kvnet.cli import spawn
from kvnet.client.connect import locate
from kvnet.errors import (
    CapacityError,
    KvnetError,
    MissingExtra,
    NotRunning,
    OperatorError,
    PeerError,
    RequestError,
    all_error_types,
    error_from_code,
)
from kvnet.extras import require_node_extra
from kvnet.paths import Home

TESTS = Path(__file__).parent

# Code -> the test that reaches it. A new error class needs a line here, and a test that is not made up.
REACHED_BY = {
    "internal": "test_wire.py::test_code_from_a_newer_version_becomes_the_base",
    "operator": "test_errors.py::test_state_folder_that_cannot_be_made_is_the_operators",
    "config_invalid": "kvnetd/test_config.py::test_bad_value_is_refused_by_its_key",
    "state_corrupt": "identity/test_keys.py::test_key_that_others_can_read_is_refused",
    "port_in_use": "transport/test_push_pull.py::test_taken_port_is_refused",
    "already_running": "e2e/test_bad_start.py::test_a_second_daemon_on_the_same_home_is_refused",
    "not_running": "test_errors.py::test_home_without_a_daemon_is_not_running",
    "missing_extra": "test_errors.py::test_client_without_torch_cannot_host",
    "request_invalid": "identity/test_keys.py::test_text_that_names_no_key_is_refused",
    "unknown_memory": "kvnetd/test_memories_store.py::test_memory_is_found_by_the_start_of_its_id",
    "unknown_peer": "identity/test_peers.py::test_unknown_peer_is_refused_with_those_that_are_known",
    "unknown_message": "kvnetd/test_ledger.py::test_unknown_message_is_refused",
    "unknown_outbox_entry": "kvnetd/test_outbox.py::test_entry_that_is_not_there_is_unknown",
    "unknown_transfer": "kvnetd/test_ledger.py::test_receipt_is_found_by_its_transfer_or_its_memory",
    "unknown_model": "model/test_loader.py",
    "no_model": "kvnetd/test_no_model.py::test_coding_that_only_a_model_can_make_is_refused",
    "unsupported_model": "model/test_cache.py",
    "unknown_basis": "kvnetd/test_bases_store.py::test_basis_that_is_not_here_is_unknown",
    "unknown_alignment": "kvnetd/test_alignments_store.py::test_an_id_that_is_not_here_is_unknown",
    "alignment_refused": "test_compat.py::test_refusal_by_policy_is_told_as_one",
    "too_few_samples": "kvnetd/test_fit_action.py::test_request_that_cannot_be_is_refused_in_a_sentence",
    "singular_statistics": ("align/test_solve.py::test_sums_without_a_solution_are_refused_in_one_sentence"),
    "unalignable_tokens": "align/test_pairs.py::test_too_few_partners_are_refused",
    "text_too_long": "transfer/test_admission.py::test_memory_longer_than_the_models_context_is_refused",
    "unknown_run": "experiments/test_folder.py::test_run_is_found_by_how_its_name_starts_or_ends",
    "malformed_run": "experiments/test_folder.py::test_cell_without_a_control_is_not_closed",
    "recipe_invalid": "experiments/test_recipe.py::test_unknown_recipe_is_refused_with_those_that_ship",
    "cells_failed": "cli/test_exp.py::test_sweep_with_a_failed_cell_goes_on_and_ends_with_all_it_found",
    "cancelled": "model/test_generate.py",
    "peer": "transfer/test_admission.py::test_offer_in_the_name_of_another_is_refused",
    "peer_unreachable": "transport/test_push_pull.py::test_nobody_at_the_address_is_unreachable",
    "peer_not_added": "kvnetd/test_transfers.py::test_offer_of_a_node_that_was_not_added_is_refused",
    "not_permitted": "kvnetd/test_peer_actions.py::test_memories_of_a_peer_are_used_only_with_permission",
    "wrong_namespace": "transport/test_security.py::test_node_of_another_namespace_is_refused_by_either_end",
    "wrong_peer": "transport/test_hostile_receiver.py::test_hello_of_another_key_is_the_wrong_peer",
    "wrong_code": "identity/test_pairing.py::test_wrong_code_is_found_by_the_inviter_first_and_says_nothing",
    "pairing_expired": "identity/test_pairing.py::test_code_counts_for_two_minutes",
    "pairing_closed": "identity/test_pairing.py::test_code_is_used_once_even_by_two_that_prove_it",
    "pairing_declined": (
        "kvnetd/test_pair_action.py::test_one_who_says_that_the_digits_differ_leaves_no_peer_anywhere"
    ),
    "bad_signature": ("identity/test_signing.py::test_flipped_payload_byte_is_refused_before_decompression"),
    "malformed_message": "format/test_strict_json.py::test_loose_json_is_refused",
    "malformed_chunk": "format/test_envelope.py::test_hostile_field_is_refused",
    "conflicting_chunk": "transfer/test_receiver.py::test_same_chunk_with_other_contents_ends_the_transfer",
    "replayed_message": "identity/test_signing.py::test_chunk_bound_elsewhere_is_refused",
    "malformed_file": "files/test_reader.py::test_other_files_are_malformed",
    "malformed_package": "files/test_package_refusals.py::test_a_linked_subfolder_is_not_followed",
    "text_mismatch": "kvnetd/test_taint.py::test_forged_memory_is_told_and_kept_from_a_verified_reply",
    "not_finite": "kvnetd/test_encoding.py::test_numbers_that_are_none_are_not_coded",
    "unsupported_format": "files/test_reader.py::test_other_version_is_unsupported",
    "transfer_incomplete": (
        "transfer/test_receiver.py::test_commit_before_the_last_chunk_is_durable_is_refused"
    ),
    "missing_prefix": "kvnetd/test_chains.py::test_memory_without_the_one_before_it_is_refused",
    "incompatible_model": "test_compat.py::test_any_other_field_is_refused_and_named_with_both_values",
    "protocol_mismatch": (
        "transport/test_push_pull.py::test_server_refuses_other_protocols_and_short_nonces"
    ),
    "capacity": (
        "transport/test_hostile_sender.py::test_hostile_frames_are_refused_and_the_next_transfer_succeeds"
    ),
    "store_full": "transfer/test_admission.py::test_memory_larger_than_the_room_is_refused",
    "too_busy": "kvnetd/test_transfers.py::test_transfer_that_is_on_its_way_in_is_not_taken_twice",
}


def error_classes() -> list[type[KvnetError]]:
    """Every class of the tree that errors.py defines."""
    return [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, KvnetError)
    ]


@pytest.mark.parametrize("code", sorted(cls.code for cls in error_classes()))
def test_every_code_has_a_test_that_reaches_it(code: str) -> None:
    assert code in REACHED_BY, f"no test reaches {code!r}: write one and name it in REACHED_BY"
    place, _, name = REACHED_BY[code].partition("::")
    source = (TESTS / place).read_text(encoding="utf-8")
    mentioned = rf"\b({code}|{all_error_types()[code].__name__})\b"
    assert re.search(mentioned, source), f"{place} says nothing of {code}"
    defined = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, _FUNCTIONS)]
    assert any(found == name or (not name and found.startswith("test_")) for found in defined)


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def test_no_test_is_named_for_a_code_that_is_gone() -> None:
    assert set(REACHED_BY) == {cls.code for cls in error_classes()}


def test_codes_are_unique_and_words() -> None:
    codes = [cls.code for cls in error_classes()]
    assert len(set(codes)) == len(codes) == len(all_error_types())
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", code) for code in codes)


@given(
    cls=st.sampled_from(error_classes()),
    message=st.text(),
    details=st.dictionaries(st.text(max_size=5), st.lists(st.text(max_size=5), min_size=2, max_size=2)),
)
def test_error_from_code_is_the_inverse_of_code(
    cls: type[KvnetError], message: str, details: dict[str, list[str]]
) -> None:
    back = error_from_code(cls.code, message, details)
    assert type(back) is cls
    assert (back.message, str(back), back.details) == (message, message, details)


@pytest.mark.parametrize("code", ["", "from_the_future", "Peer", "__class__"])
def test_unknown_code_becomes_the_base(code: str) -> None:
    back = error_from_code(code, "what")
    assert type(back) is KvnetError
    assert (back.message, back.details) == ("what", {})


def test_exit_status_says_who_must_act() -> None:
    branches = {OperatorError: 3, RequestError: 4, PeerError: 5, CapacityError: 6}
    assert KvnetError.exit_status == 1
    for cls in error_classes():
        wanted = [status for branch, status in branches.items() if issubclass(cls, branch)] or [1]
        assert [cls.exit_status] == wanted


def test_every_error_says_in_its_docstring_what_it_means() -> None:
    assert all(cls.__doc__ and cls.__doc__.endswith(".") for cls in error_classes())


def test_home_without_a_daemon_is_not_running(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="kvnet up"):
        locate(tmp_path)


def test_client_without_torch_cannot_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"kvnet\[node\]"):
        require_node_extra()


def test_state_folder_that_cannot_be_made_is_the_operators(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OperatorError, match="KVNET_HOME") as refused:
        spawn.start(Home(tmp_path / "file" / "home"), {})
    assert refused.value.code == "operator"
