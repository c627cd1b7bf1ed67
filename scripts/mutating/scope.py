"""Which modules are the verifier, and which tests are to notice when one of their checks is gone.

A mutant meets the first group of tests, and the next only if it survives; a test that needs another process
is of no use here, for that one would run the source as it is.
"""

from __future__ import annotations

Groups = tuple[tuple[str, ...], ...]

_AWKG = ("tests/format/test_awkg.py", "tests/hostile/test_corpus.py")
_FILES = ("tests/files/test_reader.py", "tests/identity/test_seal.py", "tests/files/test_package_refusals.py")
_TRANSPORT = (
    "tests/transport/test_push_pull.py",
    "tests/transport/test_hostile_offers.py",
    "tests/transport/test_hostile_receiver.py",
    "tests/transport/test_hostile_seals.py",
    "tests/transport/test_hostile_sender.py",
    "tests/transport/test_security.py",
)
_NODES = (
    "tests/kvnetd/test_arrivals.py",
    "tests/kvnetd/test_exchange.py",
    "tests/kvnetd/test_send_action.py",
    "tests/kvnetd/test_ask_action.py",
)

TESTS: dict[str, Groups] = {
    "kvnet/identity/keys.py": (("tests/identity/test_keys.py",), ("tests/identity/test_seal.py",)),
    "kvnet/identity/signing.py": (("tests/identity/test_signing.py",), _TRANSPORT),
    "kvnet/identity/seal.py": (("tests/identity/test_seal.py",), _FILES, _TRANSPORT),
    "kvnet/identity/certificates.py": (("tests/identity/test_certificates.py",), _TRANSPORT),
    "kvnet/identity/peers.py": (("tests/identity/test_peers.py",), ("tests/kvnetd/test_peer_actions.py",)),
    "kvnet/identity/codes.py": (("tests/identity/test_codes.py",),),
    "kvnet/identity/pairing.py": (("tests/identity/test_pairing.py",), ("tests/transport/test_pairing.py",)),
    "kvnet/identity/pairing_messages.py": (
        ("tests/identity/test_pairing_messages.py",),
        ("tests/transport/test_pairing.py",),
    ),
    "kvnet/identity/rotation.py": (
        ("tests/identity/test_rotation.py",),
        ("tests/kvnetd/test_rotate_action.py",),
    ),
    "kvnet/format/envelope.py": (("tests/format/test_envelope.py",), _TRANSPORT),
    "kvnet/format/strict_json.py": (("tests/format/test_strict_json.py",), _AWKG),
    "kvnet/format/compress.py": (("tests/format/test_compress.py",), _AWKG),
    "kvnet/format/awkg/document.py": (_AWKG, _FILES),
    "kvnet/format/awkg/rules.py": (_AWKG, _FILES),
    "kvnet/format/awkg/schema.py": (_AWKG, _FILES),
    "kvnet/transfer/admission.py": (("tests/transfer/test_admission.py",), _TRANSPORT, _NODES),
    "kvnet/transfer/messages.py": (("tests/transfer/test_messages.py",), _TRANSPORT),
    "kvnet/transfer/receiver.py": (
        ("tests/transfer/test_receiver.py", "tests/transfer/test_session_model.py"),
        _TRANSPORT,
    ),
    "kvnet/transfer/sender.py": (
        ("tests/transfer/test_sender.py", "tests/transfer/test_session_model.py"),
        _TRANSPORT,
    ),
    "kvnet/transport/gate.py": (
        ("tests/transport/test_gate.py", "tests/transport/test_budgets.py"),
        _TRANSPORT,
    ),
    "kvnet/transport/doorman.py": (
        ("tests/transport/test_doorman.py", "tests/transport/test_security.py"),
        (
            "tests/transport/test_budgets.py",
            "tests/transport/test_server.py",
            "tests/transport/test_reading.py",
        ),
        ("tests/transport/test_reading_hostile_caller.py", *_TRANSPORT),
    ),
    "kvnet/transport/security.py": (("tests/transport/test_security.py",),),
    "kvnet/files/reader.py": (("tests/files/test_reader.py",), _FILES, _AWKG),
    "kvnet/files/receipts.py": (("tests/files/test_receipts.py",),),
    "daemon/kvnetd/arrivals.py": (
        (
            "tests/kvnetd/test_arrivals.py",
            "tests/kvnetd/test_transfers.py",
            "tests/kvnetd/test_completed_before.py",
            "tests/kvnetd/test_limits.py",
        ),
        ("tests/kvnetd/test_mapped_memories.py", "tests/kvnetd/test_judged_uses.py", *_NODES),
    ),
    "daemon/kvnetd/parties.py": (
        ("tests/kvnetd/test_transfers.py", "tests/kvnetd/test_rotate_action.py"),
        ("tests/kvnetd/test_pair_action.py", "tests/kvnetd/test_judged_uses.py", *_NODES),
    ),
}
