"""Who a node is and what it signed: Ed25519 keys, signatures, the list of added peers."""
