"""Schedule: portions, bundles, the ledger and placement, as pure functions and plain records."""
