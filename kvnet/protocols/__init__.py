"""What is measured: protocols over the models, codecs and maps of this kvnet, into run folders."""
