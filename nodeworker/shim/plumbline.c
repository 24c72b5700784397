/*
 * plumbline: the CNI plugin that a container runtime executes.
 *
 * It adds a millisecond to an attach, where an interpreter's start would add many. It sends the request to the
 * node's worker over a unix socket, and prints the worker's answer. Of the configuration it reads only cniVersion, for
 * its own errors, and it changes no network. Its task is to lose no request: it reconnects, with the same request id,
 * until its deadline. A DEL that no worker accepts is made durable in the spool folder before the runtime gets success.
 *
 * Settings come from the environment, like a CNI plugin's parameters (CNI specification 1.1, section 2, "Parameters"):
 * a process that sets CNI_PATH already decides which binaries run as root, so this needs no more trust. There is no
 * file to parse or to find torn, and the defaults are compiled in.
 *
 *   PLUMBLINE_SOCKET    the worker's socket                 /run/plumbline/worker.sock
 *   PLUMBLINE_SPOOL     the folder for DEL requests         /var/lib/plumbline/spool
 *   PLUMBLINE_DEADLINE  seconds for one request in all      30
 *   PLUMBLINE_DELEGATE  set by the worker for plugins that it executes; here it means that the worker executed us
 *
 * The wire format, little-endian; nodeworker/shim/frame.py is the worker's side:
 *
 *   request  "PLB1" | u32 length of the rest | 16 bytes request id | u64 milliseconds left | u32 number of entries
 *            | entries, each u32 length and "KEY=VALUE" | u32 length | standard input
 *   reply    "PLB1" | u32 exit code | u32 length | standard output
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAGIC "PLB1"
#define VERSIONS                                                                                                       \
    "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":"                                                                 \
    "[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"

/* CNI specification 1.1, section 2, "Error". */
enum { BAD_ENVIRONMENT = 4, IO_FAILURE = 5, BAD_CONFIG = 7, TRY_AGAIN = 11 };

enum {
    MAGIC_SIZE = 4,
    HEADER = 8,
    ID_SIZE = 16,
    REMAINING = HEADER + ID_SIZE, /* offsets in the request */
    COUNT = REMAINING + 8,
    ENTRIES = COUNT + 4,
    STDIN_MAX = 1 << 20,
    REST_MAX = 256 << 10, /* of the request's body without standard input */
    ENTRIES_MAX = 64,
    REPLY_HEADER = 12,
    REPLY_MAX = 8 << 20,
    VERSION_MAX = 16,
    MESSAGE_MAX = 6 << 10,
};

/* Milliseconds. */
enum { DEADLINE_MAX = 3600 * 1000, STATUS_MAX = 2000, DEL_TIMEOUT = 1000, BACKOFF_MIN = 5, BACKOFF_MAX = 100 };

enum outcome { ANSWERED, SKEWED, LATE, BROKEN, BUSY, ABSENT };

static const char *const trouble[] = {
    [LATE] = "gave no answer",
    [BROKEN] = "closed the connection without an answer",
    [BUSY] = "had no room for another connection",
    [ABSENT] = "could not be reached",
};

/* Untouched pages cost nothing, so the buffers have the maximum size of a request and a reply. */
static unsigned char frame[HEADER + REST_MAX + STDIN_MAX + 1];
static size_t frame_size;
static unsigned char reply[REPLY_HEADER + REPLY_MAX];
static uint32_t reply_size;
static uint32_t reply_exit;

static const char *command;
static const char *spool;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static int64_t budget; /* milliseconds for the whole request */
static int64_t deadline;
static char version[VERSION_MAX + 1] = "1.1.0"; /* the CNI version of the configuration, once it is read */

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static bool is_del(void)
{
    return strcmp(command, "DEL") == 0;
}

static void put(unsigned char *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        at[i] = (unsigned char)(value >> (8 * i));
}

static uint32_t get32(const unsigned char *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Wait until fd can be read or written, or has an error for the next call to report. False: the deadline has passed. */
static bool ready(int fd, short events)
{
    struct pollfd wait = {.fd = fd, .events = events};
    for (;;) {
        int64_t left = deadline - now();
        if (left <= 0)
            return false;
        int n = poll(&wait, 1, (int)left);
        if (n > 0)
            return true;
        if (n < 0 && errno != EINTR)
            return false;
    }
}

/* Standard output and the spool file have no deadline: the runtime reads at its own pace, and fsync has no timeout. */
static bool write_all(int fd, const void *data, size_t size)
{
    const char *at = data;
    while (size > 0) {
        ssize_t n = write(fd, at, size);
        if (n >= 0) {
            at += n;
            size -= (size_t)n;
        } else if (errno == EAGAIN) {
            poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, -1);
        } else if (errno != EINTR) {
            return false;
        }
    }
    return true;
}

/* Copy text as the inside of a JSON string. Bytes beyond ASCII become '?': a path need not be UTF-8. */
static size_t escape(char *to, const char *text)
{
    char *at = to;
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            *at++ = '\\';
            *at++ = (char)c;
        } else if (c < 0x20) {
            at += sprintf(at, "\\u%04x", c);
        } else {
            *at++ = c < 0x7f ? (char)c : '?';
        }
    }
    return (size_t)(at - to);
}

/* Print the error object on standard output, where libcni expects it, and exit. */
__attribute__((format(printf, 2, 3))) static _Noreturn void fail(int code, const char *format, ...)
{
    static char message[MESSAGE_MAX];
    static char object[6 * MESSAGE_MAX + 128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);

    size_t size = (size_t)sprintf(object, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"", version, code);
    size += escape(object + size, message);
    size += (size_t)sprintf(object + size, "\"}\n");
    write_all(STDOUT_FILENO, object, size);
    exit(1);
}

/* go-cni treats a DEL error with the system's text for ENOENT as success, so ENOENT gets another text. */
static const char *reason(int error)
{
    return error == ENOENT ? "a folder on its path is missing" : strerror(error);
}

static const char *setting(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static void read_settings(void)
{
    const char *text = setting("PLUMBLINE_DEADLINE", "30");
    char *end;
    double milliseconds = strtod(text, &end) * 1000;
    if (*end || !(milliseconds >= 1 && milliseconds <= DEADLINE_MAX))
        fail(BAD_ENVIRONMENT, "PLUMBLINE_DEADLINE must be seconds, up to %d, and is \"%.64s\"", DEADLINE_MAX / 1000,
             text);
    budget = (int64_t)milliseconds;
    if (strcmp(command, "STATUS") == 0)
        budget = least(budget, STATUS_MAX); /* kubelet polls it, containerd gives it no limit */
    deadline = now() + budget;

    const char *path = setting("PLUMBLINE_SOCKET", "/run/plumbline/worker.sock");
    if (strlen(path) >= sizeof address.sun_path)
        fail(BAD_ENVIRONMENT, "PLUMBLINE_SOCKET is longer than a socket's path can be (%zu bytes)",
             sizeof address.sun_path - 1);
    strcpy(address.sun_path, path);
    spool = setting("PLUMBLINE_SPOOL", "/var/lib/plumbline/spool");
}

/* Read the version after the key; false if there is none. */
static bool take_version(const char *at)
{
    static const char space[] = " \t\r\n";
    at += strspn(at, space);
    if (*at++ != ':')
        return false;
    at += strspn(at, space);
    if (*at++ != '"')
        return false;
    size_t size = strspn(at, "0123456789.");
    if (size == 0 || size > VERSION_MAX || at[size] != '"')
        return false;
    memcpy(version, at, size);
    version[size] = '\0';
    return true;
}

/* Find the top-level cniVersion, for the errors of the entry point: nested delegates have their own. */
static void find_version(const char *text)
{
    static const char key[] = "cniVersion";
    int depth = 0;
    for (; *text; text++) {
        if (*text == '{' || *text == '[') {
            depth++;
        } else if (*text == '}' || *text == ']') {
            depth--;
        } else if (*text == '"') {
            const char *start = ++text;
            while (*text && *text != '"')
                text += *text == '\\' && text[1] ? 2 : 1;
            if (!*text)
                return;
            size_t size = (size_t)(text - start);
            if (depth == 1 && size == sizeof key - 1 && memcmp(start, key, size) == 0 && take_version(text + 1))
                return;
        }
    }
}

/* Read all of standard input. Never truncate it: half a configuration could free the wrong resources. */
static size_t read_stdin(unsigned char *to)
{
    size_t size = 0;
    while (size <= STDIN_MAX) {
        if (!ready(STDIN_FILENO, POLLIN))
            fail(IO_FAILURE, "%s: the runtime did not end the network configuration on standard input within %lld ms",
                 command, (long long)budget);
        ssize_t n = read(STDIN_FILENO, to + size, STDIN_MAX + 1 - size);
        if (n == 0)
            break;
        if (n > 0)
            size += (size_t)n;
        else if (errno != EINTR && errno != EAGAIN)
            fail(IO_FAILURE, "%s: the network configuration on standard input cannot be read: %s", command,
                 reason(errno));
    }
    unsigned char *last = to + (size > STDIN_MAX ? STDIN_MAX : size);
    *last = '\0'; /* for find_version; not part of the frame */
    find_version((const char *)to);
    if (size > STDIN_MAX)
        fail(BAD_CONFIG, "%s: the network configuration is larger than 1 MiB; make it smaller", command);
    return size;
}

static void build_frame(void)
{
    if (getrandom(frame + HEADER, ID_SIZE, 0) != ID_SIZE)
        fail(IO_FAILURE, "%s: the kernel gives no random bytes for a request id: %s", command, strerror(errno));
    size_t at = ENTRIES;
    uint32_t entries = 0;
    for (char **entry = environ; *entry; entry++) {
        if (strncmp(*entry, "CNI_", 4) != 0 || !strchr(*entry, '='))
            continue;
        size_t size = strlen(*entry);
        if (++entries > ENTRIES_MAX || at + 4 + size + 4 > HEADER + REST_MAX)
            fail(BAD_ENVIRONMENT, "%s: more than %d CNI_ variables, or more than %d KiB of them, are not a CNI request",
                 command, ENTRIES_MAX, REST_MAX >> 10);
        put(frame + at, size, 4);
        memcpy(frame + at + 4, *entry, size);
        at += 4 + size;
    }
    size_t input = read_stdin(frame + at + 4);
    put(frame + at, input, 4);
    frame_size = at + 4 + input;

    memcpy(frame, MAGIC, MAGIC_SIZE);
    put(frame + MAGIC_SIZE, frame_size - HEADER, 4);
    put(frame + REMAINING, (uint64_t)budget, 8);
    put(frame + COUNT, entries, 4);
}

/* receive() reports errors: a worker that refuses an incomplete frame may have answered before it closed. */
static void send_frame(int fd)
{
    int64_t left = deadline - now();
    put(frame + REMAINING, left > 0 ? (uint64_t)left : 0, 8);
    for (size_t at = 0; at < frame_size && ready(fd, POLLOUT);) {
        ssize_t n = send(fd, frame + at, frame_size - at, MSG_NOSIGNAL);
        if (n >= 0)
            at += (size_t)n;
        else if (errno != EINTR && errno != EAGAIN)
            return;
    }
}

/* Read the whole reply before printing any of it: half a result on standard output can't be taken back. */
static enum outcome receive(int fd)
{
    size_t have = 0, want = REPLY_HEADER;
    while (have < want) {
        if (!ready(fd, POLLIN))
            return LATE;
        ssize_t n = recv(fd, reply + have, want - have, 0);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0)
            return BROKEN;
        have += (size_t)n;
        if (memcmp(reply, MAGIC, have < MAGIC_SIZE ? have : MAGIC_SIZE) != 0)
            return SKEWED;
        if (have == want && want == REPLY_HEADER) {
            reply_exit = get32(reply + 4);
            reply_size = get32(reply + 8);
            /* A failure without a text is refused too: the runtime could not interpret it. */
            if (reply_size > REPLY_MAX || reply_exit > 255 || (reply_exit != 0 && reply_size == 0))
                return SKEWED;
            want += reply_size;
        }
    }
    return ANSWERED;
}

static enum outcome attempt(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return ABSENT;
    enum outcome outcome;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) {
        send_frame(fd);
        outcome = receive(fd);
    } else {
        outcome = errno == EAGAIN ? BUSY : ABSENT;
    }
    close(fd);
    return outcome;
}

/*
 * Try until there is an answer or the deadline passes. A DEL waits only DEL_TIMEOUT while no worker listens: then it
 * is spooled, and the runtime can continue.
 */
static enum outcome ask(void)
{
    int64_t timeout = is_del() ? DEL_TIMEOUT : budget;
    int64_t listened = now();
    for (int64_t pause = BACKOFF_MIN;; pause = least(2 * pause, BACKOFF_MAX)) {
        enum outcome outcome = attempt();
        if (outcome == ANSWERED || outcome == SKEWED || outcome == LATE)
            return outcome;
        if (outcome != ABSENT)
            listened = now();
        int64_t until = least(deadline, listened + timeout);
        int64_t left = until - now();
        if (left > 0)
            poll(NULL, 0, (int)least(pause, left));
        if (now() >= until)
            return outcome;
    }
}

/* Make the request durable for the worker. NULL: done; else the step that failed, and errno has the reason. */
static const char *spool_frame(void)
{
    char draft[ID_SIZE * 2 + 8] = ".", final[ID_SIZE * 2 + 8];
    for (int i = 0; i < ID_SIZE; i++)
        sprintf(final + 2 * i, "%02x", frame[HEADER + i]);
    strcat(strcat(draft, final), ".tmp");
    strcat(final, ".req");

    if (mkdir(spool, 0700) < 0 && errno != EEXIST)
        return "create it";
    int folder = open(spool, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return "open it";
    /* Also if the folder existed: the process that created it may not have synced yet. EINVAL: the parent is on a
     * read-only file system, so nothing was created in it. */
    int parent = openat(folder, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0 || (fsync(parent) < 0 && errno != EINVAL))
        return "sync its parent folder";
    int file = openat(folder, draft, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0)
        return "create a file in it";
    if (!write_all(file, frame, frame_size) || fsync(file) < 0 || renameat(folder, draft, folder, final) < 0) {
        int error = errno;
        unlinkat(folder, draft, 0);
        errno = error;
        return "write a file in it";
    }
    return fsync(folder) < 0 ? "sync it" : NULL;
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    command = setting("CNI_COMMAND", "");
    if (getenv("PLUMBLINE_DELEGATE"))
        fail(BAD_CONFIG, "%s: plumbline was called as its own delegate; name another plugin in its configuration",
             command);
    if (!*command)
        fail(BAD_ENVIRONMENT, "CNI_COMMAND is not set; plumbline is a CNI plugin, for container runtimes to execute");
    if (strcmp(command, "VERSION") == 0)
        return write_all(STDOUT_FILENO, VERSIONS, sizeof VERSIONS - 1) ? 0 : 1;
    read_settings();
    build_frame();

    enum outcome outcome = ask();
    if (outcome == ANSWERED)
        return write_all(STDOUT_FILENO, reply + REPLY_HEADER, reply_size) ? (int)reply_exit : 1;
    if (is_del()) {
        const char *failed = spool_frame();
        if (!failed)
            return 0;
        fail(TRY_AGAIN,
             "DEL: the worker at %s did not accept it, and the spool folder %s cannot store it (failed to %s: %s); "
             "start the worker or repair the folder, and try again",
             address.sun_path, spool, failed, reason(errno));
    }
    if (outcome == SKEWED)
        fail(TRY_AGAIN,
             "%s: the worker at %s speaks another protocol than this entry point; upgrade the older of the two, "
             "and try again",
             command, address.sun_path);
    fail(TRY_AGAIN,
         "%s: the worker at %s %s within %lld ms; check that plumbline's worker runs on this node, and try again",
         command, address.sun_path, trouble[outcome], (long long)budget);
}
