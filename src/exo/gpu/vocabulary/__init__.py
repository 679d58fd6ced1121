"""The words of exo.gpu: frozen values that every room hands over and no room owns."""
