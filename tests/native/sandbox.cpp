// Enters the sandbox as the runtime does, by the same table, and tries what a program that was
// taken over would try. Prints a line per attempt: what, and the name of the error, or "done".
//
//   sandbox DUTY SECRET WRITABLE FOLDER PORT OWN
//
// SECRET is a file that was not named, WRITABLE one that was to be written, or empty; in FOLDER
// there is the file `named`. PORT is one that somebody listens on, and OWN the one that it may use.
#include "system/sandbox.h"

#include <arpa/inet.h>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <functional>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <thread>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/prctl.h>
#include <sys/ptrace.h>
#endif

extern char ** environ;

static void attempt(const char * what, const std::function<long()> & act) {
    errno = 0;
    const long result = act();
    const int error = result < 0 ? errno : 0;
    printf("%s: %s\n", what,
           error == 0        ? "done"
           : error == EPERM  ? "EPERM"
           : error == EACCES ? "EACCES"
           : error == ENOSYS ? "ENOSYS"
                             : strerror(error));
    fflush(stdout);
}

static long closed(int descriptor) {
    if (descriptor >= 0) {
        close(descriptor);
    }
    return descriptor;
}

static sockaddr_in local(int port) {
    sockaddr_in out = {};
    out.sin_family = AF_INET;
    out.sin_port = htons((uint16_t)port);
    out.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return out;
}

static long on_port(int (*call)(int, const sockaddr *, socklen_t), int port) {
    const sockaddr_in name = local(port);
    const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
    if (socket < 0) {
        return socket;
    }
    const long result = call(socket, (const sockaddr *)&name, sizeof(name));
    const int error = errno;
    close(socket);
    errno = error;
    return result;
}

int main(int argc, char ** argv) {
    if (argc == 2) { // it was started by itself
        return 0;
    }
    const std::string secret = argv[2], writable = argv[3], folder = argv[4];
    const int port = atoi(argv[5]), own = atoi(argv[6]);
    named names;
    names.reads = { folder + "/named" };
    if (!writable.empty()) {
        names.writes = { writable };
    }
    names.program = argv[0];
    names.gpu = getenv("SANDBOX_GPU") != nullptr;
    timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    sandbox_names(names, true);
    enter_sandbox((duty)atoi(argv[1]), { own });
    clock_gettime(CLOCK_MONOTONIC, &after);
    fprintf(stderr, "%ld us\n",
            (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000);

    const auto tries = [&] {
        attempt("read named", [&] { return closed(open((folder + "/named").c_str(), O_RDONLY)); });
        attempt("read secret", [&] { return closed(open(secret.c_str(), O_RDONLY)); });
        attempt("list", [&] { return closed(open(folder.c_str(), O_RDONLY | O_DIRECTORY)); });
        attempt("write named", [&] {
            return writable.empty() ? (errno = ENOENT, -1L)
                                    : closed(open(writable.c_str(), O_WRONLY | O_TRUNC));
        });
        attempt("write secret", [&] { return closed(open(secret.c_str(), O_WRONLY)); });
        attempt("make",
                [&] { return closed(open((folder + "/made").c_str(), O_WRONLY | O_CREAT, 0600)); });
        attempt("unlink", [&] { return unlink((folder + "/old").c_str()); });
        attempt("rename",
                [&] { return rename((folder + "/other").c_str(), (folder + "/others").c_str()); });
        attempt("chmod", [&] { return chmod((folder + "/named").c_str(), 0600); });
        attempt("truncate", [&] { return truncate(secret.c_str(), 0); });
        attempt("link", [&] { return symlink(secret.c_str(), (folder + "/link").c_str()); });
        attempt("fork", [] {
            const pid_t child = fork();
            if (child == 0) {
                _exit(0);
            }
            return child < 0 ? -1L : waitpid(child, nullptr, 0);
        });
        attempt("exec other", [] {
            char * const words[] = { const_cast<char *>("/bin/true"), nullptr };
            pid_t child;
            const int error = posix_spawn(&child, words[0], nullptr, nullptr, words, environ);
            errno = error;
            return error != 0 ? -1L : waitpid(child, nullptr, 0);
        });
        attempt("exec itself", [&] {
            char * const words[] = { argv[0], const_cast<char *>("child"), nullptr };
            pid_t child;
            const int error = posix_spawn(&child, argv[0], nullptr, nullptr, words, environ);
            errno = error;
            return error != 0 ? -1L : waitpid(child, nullptr, 0);
        });
        attempt("thread", [] {
            std::thread([] {}).join();
            return 0L;
        });
        attempt("signal another", [] { return kill(getppid(), 0); });
        attempt("executable memory", [] {
            // not through musl, whose mmap() makes ENOMEM of EPERM
            return syscall(SYS_mmap, nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) < 0
                       ? -1L
                       : 0L;
        });
        attempt("memory made executable", [] {
            void * const at =
                mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            return mprotect(at, 4096, PROT_READ | PROT_EXEC);
        });
        attempt("socket", [] { return closed(socket(AF_INET, SOCK_STREAM, 0)); });
        attempt("socket UDP", [] { return closed(socket(AF_INET, SOCK_DGRAM, 0)); });
        attempt("socket UNIX", [] { return closed(socket(AF_UNIX, SOCK_STREAM, 0)); });
        attempt("bind own", [&] { return on_port(bind, own); });
        attempt("bind other", [&] { return on_port(bind, 1); });
        attempt("connect own", [&] { return on_port(connect, own); });
        attempt("connect other", [&] { return on_port(connect, port); });
#ifdef __linux__
        // it is not traced: where that is all that is wrong with it, the answer is another
        attempt("ptrace", [] { return ptrace(PTRACE_PEEKDATA, getppid(), nullptr, nullptr); });
        attempt("another's memory",
                [] { return syscall(SYS_process_vm_readv, getppid(), nullptr, 0, nullptr, 0, 0); });
        attempt("another's environment", [] {
            const std::string path = "/proc/" + std::to_string(getppid()) + "/environ";
            const int file = open(path.c_str(), O_RDONLY);
            char first;
            return file < 0                     ? -1L
                   : read(file, &first, 1) == 1 ? closed(file)
                                                : (errno = EPERM, -1L);
        });
        attempt("type for the shell", [] { return ioctl(0, TIOCSTI, "x"); });
        attempt("clone3", [] { return syscall(SYS_clone3, nullptr, 0); });
        attempt("io_uring", [] { return syscall(SYS_io_uring_setup, 1, nullptr); });
        attempt("memfd", [] { return closed((int)syscall(SYS_memfd_create, "x", 0)); });
        attempt("namespace", [] { return syscall(SYS_unshare, 0x10000000); });
        attempt("socket MPTCP", [] { return closed(socket(AF_INET, SOCK_STREAM, 262)); });
        attempt("fast open", [&] {
            const sockaddr_in name = local(port);
            const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
            return socket < 0 ? -1L
                              : sendto(socket, "x", 1, MSG_FASTOPEN, (const sockaddr *)&name,
                                       sizeof(name));
        });
#endif
    };
    tries();
    puts("tightened");
    tighten_sandbox();
    tries();
    return 0;
}
