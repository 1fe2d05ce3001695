// Linux: Landlock (landlock(7)) for files and TCP, seccomp (seccomp(2)) for all else. Neither can
// be taken back, and both pass on to threads and processes that are started from here on.

#include "system/sandbox/system.h"

#include <cerrno>
#include <cstddef>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// Landlock

using rights = uint64_t;

const rights EXECUTE = LANDLOCK_ACCESS_FS_EXECUTE;
const rights READ = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
const rights WRITE = LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_TRUNCATE;
const rights MAKE = LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_DIR |
                    LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_REFER;
const rights DEVICE = LANDLOCK_ACCESS_FS_IOCTL_DEV;
// What can be said of a file; all else is about what is in a folder.
const rights OF_FILES = EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | WRITE | DEVICE;

// All that an ABI knows, which Linux wants to be told: what is not named is not confined.
rights file_rights(int abi) {
    const rights first = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1;
    return first | (abi >= 2 ? LANDLOCK_ACCESS_FS_REFER : 0) |
           (abi >= 3 ? LANDLOCK_ACCESS_FS_TRUNCATE : 0) |
           (abi >= 5 ? LANDLOCK_ACCESS_FS_IOCTL_DEV : 0);
}

// What the C library, llama.cpp and the files beside this one look at.
const char * const SYSTEM[] = {
    "/dev/full",      "/dev/random",         "/dev/urandom",      "/dev/zero",
    "/etc/hosts",     "/etc/localtime",      "/etc/resolv.conf",  "/etc/services",
    "/proc/cpuinfo",  "/proc/meminfo",       "/proc/self",        "/proc/sys/kernel",
    "/sys/fs/cgroup", "/sys/devices/system", "/usr/share/locale", "/usr/share/zoneinfo",
};
const char * const DEVICES[] = { "/dev/null", "/dev/tty" };

// What the drivers of GPUs are, and look at: libraries, manifests, settings, what there is for a
// machine. A folder of the user's is none of these: no driver keeps compiled shaders there.
const char * const DRIVERS[] = {
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/opt/amdgpu",
    "/opt/amdgpu-pro",
    "/gnu/store",
    "/nix/store",
    "/run/opengl-driver",
    "/etc/ld.so.cache",
    "/etc/vulkan",
    "/etc/drirc",
    "/usr/share/vulkan",
    "/usr/share/drirc.d",
    "/usr/share/libdrm",
    "/usr/share/nvidia",
    "/usr/local/etc/vulkan",
    "/usr/local/share/vulkan",
    "/proc/driver",
    "/proc/modules",
    "/sys/bus/pci",
    "/sys/class/drm",
    "/sys/dev/char",
    "/sys/devices",
    "/sys/module",
};
const char * const GPUS[] = {
    "/dev/dri",
    "/dev/dxg",
    "/dev/kfd",
    "/dev/nvidiactl",
    "/dev/nvidia-modeset",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
};
const int MOST_NVIDIAS = 16; // /dev/nvidia0 and so on

// The kernel starts one in front of a program that is linked with libraries.
const char * const LINKERS[] = { "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1" };

class ruleset {
  public:
    ruleset(int abi, const permissions & may) {
        // Who may use all files may still start none of them.
        const bool all = may.reads == files::ALL && may.writes == files::ALL;
        handled = all ? EXECUTE : file_rights(abi);
        landlock_ruleset_attr attributes = {};
        attributes.handled_access_fs = handled;
        if (abi >= 4 && may.net != network::ANYWHERE) {
            attributes.handled_access_net =
                LANDLOCK_ACCESS_NET_BIND_TCP | LANDLOCK_ACCESS_NET_CONNECT_TCP;
        }
        if (abi >= 6) {
            attributes.scoped = LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL;
        }
        // Linux takes the fields that it doesn't know if they are zero.
        descriptor = (int)syscall(SYS_landlock_create_ruleset, &attributes, sizeof(attributes), 0);
    }

    ~ruleset() {
        if (descriptor >= 0) {
            close(descriptor);
        }
    }

    // What can't be found can't be used later, either.
    void allow(const std::string & path, rights wanted) const {
        landlock_path_beneath_attr rule = {};
        struct stat status;
        rule.parent_fd = open(path.c_str(), O_PATH | O_CLOEXEC);
        if (rule.parent_fd < 0) {
            return;
        }
        if (fstat(rule.parent_fd, &status) == 0) {
            rule.allowed_access =
                wanted & handled & (S_ISDIR(status.st_mode) ? ~(rights)0 : OF_FILES);
            if (rule.allowed_access != 0) {
                syscall(SYS_landlock_add_rule, descriptor, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
            }
        }
        close(rule.parent_fd);
    }

    void allow_port(int port, rights wanted) const {
        landlock_net_port_attr rule = {};
        rule.allowed_access = wanted;
        rule.port = (uint64_t)port;
        syscall(SYS_landlock_add_rule, descriptor, LANDLOCK_RULE_NET_PORT, &rule, 0);
    }

    bool restrict_self() const {
        return descriptor >= 0 && syscall(SYS_landlock_restrict_self, descriptor, 0) == 0;
    }

  private:
    rights handled;
    int descriptor;
};

int landlock_abi() {
    return (int)syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
}

bool is_folder(const std::string & path) {
    struct stat status;
    return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

bool enter_landlock(int abi, const permissions & may, const named & names) {
    const ruleset rules(abi, may);
    for (const char * path : SYSTEM) {
        rules.allow(path, READ);
    }
    for (const char * path : DEVICES) {
        rules.allow(path, READ | WRITE | DEVICE);
    }
    for (const std::string & path : names.reads) {
        rules.allow(path, READ);
    }
    for (const std::string & path : names.writes) {
        rules.allow(path, READ | WRITE | DEVICE | MAKE);
    }
    if (has_driver(may, names)) {
        for (const char * path : DRIVERS) {
            rules.allow(path, READ);
        }
        for (const std::string & path : names.drivers) {
            rules.allow(path, READ);
        }
        const rights of_device = READ | LANDLOCK_ACCESS_FS_WRITE_FILE | DEVICE;
        for (const char * path : GPUS) {
            rules.allow(path, of_device);
        }
        for (int i = 0; i < MOST_NVIDIAS; i++) {
            rules.allow("/dev/nvidia" + std::to_string(i), of_device);
        }
        for (const char * path : LINKERS) {
            rules.allow(path, READ | (may.starts ? EXECUTE : 0));
        }
    }
    if (may.starts) {
        rules.allow(names.program, LANDLOCK_ACCESS_FS_READ_FILE | EXECUTE);
        rules.allow("/proc", READ); // its models have a folder of their own there
    }
    for (const std::string & path : names.sockets) {
        const std::string folder = path.substr(0, path.rfind('/') + 1);
        rules.allow(folder.empty() ? "." : folder, LANDLOCK_ACCESS_FS_MAKE_SOCK);
    }
    for (const int port : abi >= 4 ? names.ports : std::vector<int>()) {
        const rights listens = LANDLOCK_ACCESS_NET_BIND_TCP,
                     connects = LANDLOCK_ACCESS_NET_CONNECT_TCP;
        rules.allow_port(port, may.net == network::ROUTES    ? listens | connects
                               : may.net == network::LISTENS ? listens
                                                             : connects);
    }
    return rules.restrict_self();
}

// seccomp

#if defined(__x86_64__)
const uint32_t ARCHITECTURE = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
const uint32_t ARCHITECTURE = AUDIT_ARCH_AARCH64;
#endif

// clang-format off
// Nobody in here has a use for them: other processes, the kernel's own programs, other namespaces,
// the machine, files that have no name, more rights, and memory that is shared with strangers.
const std::vector<int> NEVER = {
    SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_kcmp, SYS_pidfd_open,
    SYS_pidfd_getfd, SYS_pidfd_send_signal, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo,
    SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_io_uring_setup, SYS_io_uring_enter,
    SYS_io_uring_register, SYS_add_key, SYS_request_key, SYS_keyctl,
    SYS_unshare, SYS_setns, SYS_mount, SYS_umount2, SYS_move_mount, SYS_open_tree, SYS_fsopen,
    SYS_fsconfig, SYS_fsmount, SYS_fspick, SYS_pivot_root, SYS_chroot,
    SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_kexec_file_load,
    SYS_reboot, SYS_swapon, SYS_swapoff, SYS_acct, SYS_quotactl, SYS_syslog, SYS_vhangup,
    SYS_sethostname, SYS_setdomainname, SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime,
    SYS_adjtimex, SYS_personality,
    SYS_open_by_handle_at, SYS_name_to_handle_at, SYS_fanotify_init,
    SYS_mknodat, SYS_execveat, SYS_socketpair,
    SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid,
    SYS_setgroups, SYS_setfsuid, SYS_setfsgid, SYS_capset,
    SYS_shmget, SYS_shmat, SYS_semget, SYS_msgget, SYS_mq_open,
#if defined(__x86_64__)
    SYS_mknod, SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_uselib,
#endif
    // Those that are newer than the C library's list have the same number on all processors:
    // mount_setattr, quotactl_fd, memfd_secret, open_tree_attr
    442, 443, 447, 467,
};

// Landlock leaves these to everybody.
const std::vector<int> ATTRIBUTES = {
    SYS_fchmod,      SYS_fchmodat,     SYS_fchown,       SYS_fchownat,
    SYS_utimensat,   SYS_setxattr,     SYS_lsetxattr,    SYS_fsetxattr,
    SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr,
#if defined(__x86_64__)
    SYS_chmod,       SYS_chown,        SYS_lchown,       SYS_utime,
    SYS_utimes,      SYS_futimesat,
#endif
    452, 463, 466, 469, // fchmodat2, setxattrat, removexattrat, file_setattr
};
// clang-format on

// The same as Landlock's rules, coarser, for who writes nothing at all.
const std::vector<int> CHANGES = {
    SYS_unlinkat,  SYS_renameat2, SYS_mkdirat,   SYS_linkat,
    SYS_symlinkat, SYS_truncate,  SYS_fallocate,
#ifdef SYS_renameat
    SYS_renameat,
#endif
#if defined(__x86_64__)
    SYS_creat,     SYS_unlink,    SYS_rename,    SYS_mkdir,
    SYS_rmdir,     SYS_link,      SYS_symlink,
#endif
};

const uint32_t NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER |
                            CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP;

// A program for the kernel's small machine: each rule looks at one system call, and either answers
// or leaves it to the next one; who comes to the end is let through.
class filter {
  public:
    filter() {
        load(offsetof(seccomp_data, arch));
        test(BPF_JEQ, ARCHITECTURE, 1, 0);
        answer(EPERM);
        load(offsetof(seccomp_data, nr));
#if defined(__x86_64__)
        test(BPF_JGE, 0x40000000, 0, 1); // x32, whose calls have other numbers
        answer(ENOSYS);
#endif
    }

    void refuse(int call, int error = EPERM) {
        test(BPF_JEQ, (uint32_t)call, 0, 1);
        answer(error);
    }

    void refuse(const std::vector<int> & calls) {
        for (const int call : calls) {
            refuse(call);
        }
    }

    // Refuses the call if a test of its argument holds; below 32 bits is all that matters.
    void refuse_if(int call, int argument, int relation, uint32_t value) {
        test(BPF_JEQ, (uint32_t)call, 0, 4);
        load_argument(argument, 0);
        test(relation, value, 0, 1);
        answer(EPERM);
        load(offsetof(seccomp_data, nr));
    }

    // Refuses the call if one of the bits is set in its argument.
    void refuse_bits(int call, int argument, uint32_t bits) {
        refuse_if(call, argument, BPF_JSET, bits);
    }

    void refuse_value(int call, int argument, uint32_t value) {
        refuse_if(call, argument, BPF_JEQ, value);
    }

    // Refuses the call unless the argument, an int, is one of these, in the bits of the mask.
    void refuse_unless(int call, int argument, std::vector<uint32_t> allowed, uint32_t mask = ~0u) {
        const auto count = (uint8_t)allowed.size();
        test(BPF_JEQ, (uint32_t)call, 0, (uint8_t)(count + 4));
        load_argument(argument, 0);
        add(BPF_ALU | BPF_AND | BPF_K, mask);
        for (uint8_t i = 0; i < count; i++) {
            test(BPF_JEQ, allowed[i], (uint8_t)(count - i), 0);
        }
        answer(EPERM);
        load(offsetof(seccomp_data, nr));
    }

    // Refuses the call unless the argument, a pointer, is null.
    void refuse_unless_null(int call, int argument) {
        test(BPF_JEQ, (uint32_t)call, 0, 6);
        load_argument(argument, 0);
        test(BPF_JEQ, 0, 0, 2);
        load_argument(argument, 4);
        test(BPF_JEQ, 0, 1, 0);
        answer(EPERM);
        load(offsetof(seccomp_data, nr));
    }

    // For all threads, if Linux can (since 3.17).
    bool install() {
        add(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        const sock_fprog program = { (unsigned short)code.size(), code.data() };
        return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) ==
               0;
    }

  private:
    void add(int operation, uint32_t value, uint8_t yes = 0, uint8_t no = 0) {
        code.push_back({ (uint16_t)operation, yes, no, value });
    }
    void load(size_t offset) {
        add(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset);
    }
    // Both processors keep the lower half first.
    void load_argument(int number, size_t half) {
        load(offsetof(seccomp_data, args) + (size_t)number * 8 + half);
    }
    void test(int relation, uint32_t value, uint8_t yes, uint8_t no) {
        add(BPF_JMP | relation | BPF_K, value, yes, no);
    }
    void answer(int error) {
        add(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error);
    }

    std::vector<sock_filter> code;
};

void refuse_programs(filter & out, bool starts) {
    out.refuse(SYS_clone3, ENOSYS); // its arguments are out of sight; all take clone instead
    out.refuse_bits(SYS_clone, 0, NAMESPACES);
    if (starts) {
        return; // which ones, Landlock says
    }
    out.refuse_unless(SYS_clone, 0, { CLONE_THREAD }, CLONE_THREAD);
    out.refuse(SYS_execve);
#if defined(__x86_64__)
    out.refuse(SYS_fork);
    out.refuse(SYS_vfork);
#endif
    // Of a process that has no children, signals are for itself.
    out.refuse_unless(SYS_kill, 0, { (uint32_t)getpid() });
}

void refuse_network(filter & out, network net, const named & names) {
    const std::vector<uint32_t> internet = { AF_INET, AF_INET6 };
    const std::vector<uint32_t> with_paths = { AF_INET, AF_INET6, AF_UNIX };
    if (net == network::NONE) {
        out.refuse(SYS_socket);
    } else {
        out.refuse_unless(SYS_socket, 0, names.sockets.empty() ? internet : with_paths);
    }
    if (net != network::ANYWHERE) {
        // Nothing but TCP, which Landlock knows, and 0 is TCP as well.
        out.refuse_unless(SYS_socket, 1, { SOCK_STREAM }, 0xF);
        out.refuse_unless(SYS_socket, 2, { 0, IPPROTO_TCP });
        // Two ways to connect without connect().
        out.refuse_unless_null(SYS_sendto, 4);
        out.refuse_bits(SYS_sendto, 3, MSG_FASTOPEN);
        out.refuse_bits(SYS_sendmsg, 2, MSG_FASTOPEN);
        out.refuse_bits(SYS_sendmmsg, 3, MSG_FASTOPEN);
    }
    if (net == network::NONE || net == network::LISTENS) {
        out.refuse(SYS_connect);
    }
    if (net != network::LISTENS && net != network::ROUTES) {
        out.refuse(SYS_bind);
        out.refuse(SYS_listen);
    }
}

// A driver is a library, compiles for its GPU, or for the processor as lavapipe does, and shares
// memory with it by descriptors.
void refuse_memory(filter & out) {
    out.refuse(SYS_memfd_create);
    out.refuse_bits(SYS_mmap, 2, PROT_EXEC);
    out.refuse_bits(SYS_mprotect, 2, PROT_EXEC);
    out.refuse_bits(SYS_pkey_mprotect, 2, PROT_EXEC);
}

// `by_path`: Landlock does so as well, which tells a device that a driver writes to from a file.
// Without it a driver may write to any file that is there, or it would have no device.
void refuse_changes(filter & out, const permissions & may, const named & names, bool by_path) {
    if (may.writes == files::ALL) {
        return;
    }
    out.refuse(ATTRIBUTES);
    if (names.writes.empty()) {
        out.refuse(SYS_openat2, ENOSYS); // its flags are out of sight
        out.refuse(CHANGES);
        if (has_driver(may, names) && by_path) {
            return;
        }
        const uint32_t makes = O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY);
        const uint32_t writes = has_driver(may, names) ? makes : makes | O_WRONLY | O_RDWR;
        out.refuse_bits(SYS_openat, 2, writes);
#if defined(__x86_64__)
        out.refuse_bits(SYS_open, 1, writes);
#endif
    }
}

bool enter_seccomp(const permissions & may, const named & names, bool landlock) {
    filter out;
    out.refuse(NEVER);
    refuse_programs(out, may.starts);
    refuse_network(out, may.net, names);
    if (!has_driver(may, names)) {
        refuse_memory(out);
    }
    refuse_changes(out, may, names, landlock);
    out.refuse_unless(SYS_prlimit64, 0, { 0 }); // the limits of others
    // What is typed for the shell that started it, and what is selected on a console.
    out.refuse_value(SYS_ioctl, 1, TIOCSTI);
    out.refuse_value(SYS_ioctl, 1, TIOCLINUX);
    return out.install();
}

// What root keeps of its rights: to use files and ports, to lock memory, to come first. With the
// others it may look into every process, whatever Landlock says.
void drop_capabilities() {
    const uint64_t keeps = 1ull << CAP_DAC_OVERRIDE | 1ull << CAP_DAC_READ_SEARCH |
                           1ull << CAP_NET_BIND_SERVICE | 1ull << CAP_IPC_LOCK |
                           1ull << CAP_SYS_NICE | 1ull << CAP_SYS_RESOURCE;
    __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
    __user_cap_data_struct sets[2] = {};
    if (syscall(SYS_capget, &head, sets) != 0 || (sets[0].permitted | sets[1].permitted) == 0) {
        return;
    }
    for (int right = 0; right <= CAP_LAST_CAP; right++) {
        if ((keeps >> right & 1) == 0) {
            prctl(PR_CAPBSET_DROP, right, 0, 0, 0); // or a program that root starts has them again
        }
    }
    for (int half = 0; half < 2; half++) {
        const auto mask = (uint32_t)(keeps >> (32 * half));
        sets[half].effective &= mask;
        sets[half].permitted &= mask;
        sets[half].inheritable &= mask;
    }
    syscall(SYS_capset, &head, sets);
}

} // namespace

std::string confine(const permissions & may, const named & names) {
    for (const std::string & path : names.writes) {
        if (!is_folder(path)) {
            const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666);
            if (file >= 0) {
                close(file);
            }
        }
    }
    drop_capabilities();
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    const int abi = landlock_abi();
    const bool landlock = abi > 0 && enter_landlock(abi, may, names);
    const bool seccomp = enter_seccomp(may, names, landlock);
    const std::string name = "Landlock ABI " + std::to_string(abi);
    const std::string driver = has_driver(may, names) ? " (with the driver of a GPU)" : "";
    if (landlock && seccomp) {
        return name + ", seccomp" + driver +
               (abi >= 4 ? "" : " (older than ABI 4: ports are not confined)");
    }
    return landlock  ? name + " (no seccomp: system calls are not confined)"
           : seccomp ? "seccomp" + driver + " (no Landlock: reading is not confined" +
                           (driver.empty() ? ")" : ", nor writing to files that are there)")
                     : "none (this kernel has neither Landlock nor seccomp)";
}

void confine_further(const named &) {
    filter out;
    out.refuse({ SYS_socket, SYS_bind, SYS_listen });
    out.install();
}

bool sandbox_confines_files() {
    return landlock_abi() > 0;
}
