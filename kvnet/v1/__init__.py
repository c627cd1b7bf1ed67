"""Generated from proto/kvnet/v1 by scripts/gen_proto; never edited."""
