# Made from kvnet/client/_async by scripts/unasync; edit it there.
