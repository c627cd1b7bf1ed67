"""What a node bounds at its peer port, and waits for at others'; and gRPC's options that say so.

The sizes of messages, chunks and headers are constants of FORMAT.md and no settings.

What cannot be bounded from Python: gRPC takes a socket before anybody is asked, so strangers are counted by
`max_sockets` alone, wherever they come from. Whoever holds that many at a time, each for
`handshake_deadline_s`, keeps new connections out; those that are open go on. Connections of peers are counted
while they make calls, and end by idling otherwise. What gRPC itself buffers for a stream is its flow-control
window.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvnet.transport.frames import CHANNEL_OPTIONS

Options = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class PortLimits:
    """Each is a whole number; a name that ends in _s is of seconds."""

    max_sockets: int = 256  # strangers that shake hands included; the next is closed at once
    max_connections: int = 64  # from which peers make calls
    max_connections_per_ip: int = 8
    max_connections_per_peer: int = 4
    max_streams: int = 16  # calls on one connection; the next waits at its caller
    max_calls: int = 64  # that are dealt with at a time
    max_calls_per_peer: int = 16
    max_calls_per_s: int = 50  # that one peer begins; twice as many at once after a pause
    busy_pause_s: int = 3  # how long a call of too many waits for its turn, and then for its refusal
    handshake_deadline_s: int = 10
    unary_deadline_s: int = 10
    idle_deadline_s: int = 20  # between two frames of a stream
    keepalive_s: int = 20  # of silence until a ping
    keepalive_timeout_s: int = 10
    min_ping_interval_s: int = 10  # whoever pings more often is hung up on
    connection_age_s: int = 600  # then a new handshake; calls in progress are let finish
    connection_idle_s: int = 60  # without a call

    def client_options(self) -> Options:
        """Of a channel to a peer."""
        return (
            *CHANNEL_OPTIONS,
            ("grpc.keepalive_time_ms", self.keepalive_s * 1000),
            ("grpc.keepalive_timeout_ms", self.keepalive_timeout_s * 1000),
        )

    def server_options(self) -> Options:
        """Of the peer port."""
        return (
            *self.client_options(),
            ("grpc.so_reuseport", 0),  # a taken port is an error, not a share
            ("grpc.max_allowed_incoming_connections", self.max_sockets),
            ("grpc.max_concurrent_streams", self.max_streams),
            ("grpc.server_handshake_timeout_ms", self.handshake_deadline_s * 1000),
            ("grpc.http2.min_ping_interval_without_data_ms", self.min_ping_interval_s * 1000),
            ("grpc.max_connection_age_ms", self.connection_age_s * 1000),
            ("grpc.max_connection_idle_ms", self.connection_idle_s * 1000),
        )
