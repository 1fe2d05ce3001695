// Whose program it is, for macOS, where no bundle says so.
    .section __TEXT,__info_plist,regular,no_dead_strip
    .incbin "Info.plist"
