"""Find the other nodes of a LAN by mDNS. Knows names, addresses and ports; no keys, no gRPC.

What is found here is a hint where to dial, never a credential: whoever answers is believed only
after the transport has checked its key.
"""

from kvnet.discovery.advert import SERVICE_TYPE, SHORT_ID_LENGTH, Advert, Refusal, parse_service
from kvnet.discovery.interfaces import Link, choose_links, list_links
from kvnet.discovery.mdns import Discovery
from kvnet.discovery.table import Endpoint, Event, PeerLost, PeerSeen, PeerTable

__all__ = [
    "SERVICE_TYPE",
    "SHORT_ID_LENGTH",
    "Advert",
    "Discovery",
    "Endpoint",
    "Event",
    "Link",
    "PeerLost",
    "PeerSeen",
    "PeerTable",
    "Refusal",
    "choose_links",
    "list_links",
    "parse_service",
]
