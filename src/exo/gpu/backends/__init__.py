"""The vendors: one file each, behind one interface; nothing above names a driver."""
