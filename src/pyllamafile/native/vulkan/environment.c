// The environment of a program against glibc that lies at fixed addresses: the linker puts a copy of
// glibc's variable into it, and glibc and all libraries use that. glibc calls it by three names
// (unistd.h, environ(7)), and the stub of glibc that zig links with doesn't say that they are one.
// So this program has the variable, and all of its names.
char ** __environ;
extern char ** environ __attribute__((alias("__environ")));
extern char ** _environ __attribute__((alias("__environ")));
