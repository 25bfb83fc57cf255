/* Faults at chosen moments of a process that is started with this library preloaded (LD_PRELOAD; Linux with glibc).
 *
 * Events of one kind are counted over all threads, from 1, and the fault comes at a chosen number:
 *
 *   GPUDEDUP_FAULT      fault                                                             events
 *     none              nothing, only counts                                              operations on files
 *     kill              SIGKILL; in a write, after the first half of its bytes            operations on files
 *     cut               as if power failed: what was not flushed is gone, then SIGKILL    operations on files
 *     term, int, usr1   that signal, then the operation goes on                           operations on files
 *     stop              SIGSTOP: goes on after SIGCONT                                    operations on files
 *     full              ENOSPC, from then on for all that needs room (no renames)         operations on files
 *     readonly          EROFS, from then on for everything                                operations on files
 *     io                EIO, once                                                         operations on files
 *     short             writes take half of their bytes only, from then on                operations on files
 *     memory            no memory, once                                                   allocations of 1 MB or more
 *     clock             the time of day goes two hours forth or back, again and again     looks at the time of day
 *   GPUDEDUP_FAULT_AT   its number; 0: never
 *   GPUDEDUP_FAULT_IN   operations count on files below this directory, an absolute path without links
 *   GPUDEDUP_FAULT_LOG  a file elsewhere: a line for each operation and allocation (NUMBER NAME BYTES PATH), and one
 *                       that begins with "!" before it for the fault; NUMBER from 0 PATH after a rename that went well
 *
 * Operations are those that change something: opening for writing, writing, flushing, renaming, removing. What is
 * written through a mapping is not seen. Processes that this one starts are left alone.
 *
 * For `cut`: a file that was changed and not flushed since is empty afterwards, and a name that was made and whose
 * directory was not flushed since is gone. That is harsher than most file systems, and allowed to all. (A rename onto a
 * name that was there stays: any file system keeps either the old file or the new one.) At a regular end of
 * the process without a fault before, power fails then.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum fault { NONE, KILL, CUT, TERM, INT, USR1, STOP, FULL, READONLY, IO, SHORT, MEMORY, CLOCK };
static const char* const fault_names[] = {"none", "kill",     "cut", "term",  "int",    "usr1", "stop",
                                          "full", "readonly", "io",  "short", "memory", "clock"};
static enum fault fault;
static long fault_at, events;
static __thread long event_number; /* of this thread's last event */
static char root[PATH_MAX];
static size_t root_length;
static int log_file = -1;

#define NEXT(name)               \
  static __typeof__(name)* next; \
  if (!next) *(void**)(&next) = dlsym(RTLD_NEXT, #name)

static void fail(const char* why) {
  dprintf(STDERR_FILENO, "fault shim: %s\n", why);
  _exit(99);
}

__attribute__((constructor)) static void start(void) {
  const char* wanted = getenv("GPUDEDUP_FAULT");
  const char* at = getenv("GPUDEDUP_FAULT_AT");
  const char* in = getenv("GPUDEDUP_FAULT_IN");
  const char* log = getenv("GPUDEDUP_FAULT_LOG");
  if (!wanted || !at || !in || in[0] != '/' || strlen(in) >= sizeof root || !log)
    fail("GPUDEDUP_FAULT, _AT, _IN (absolute) and _LOG are all needed");
  size_t kind = 0;
  while (kind <= CLOCK && strcmp(wanted, fault_names[kind])) ++kind;
  if (kind > CLOCK) fail("GPUDEDUP_FAULT is unknown");
  int file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  log_file = fcntl(file, F_DUPFD_CLOEXEC, 200);  // out of the way of programs that count on low numbers
  if (log_file < 0) fail("GPUDEDUP_FAULT_LOG cannot be written");
  close(file);
  strcpy(root, in);
  root_length = strlen(root);
  fault_at = atol(at);
  fault = (enum fault)kind;
  unsetenv("LD_PRELOAD");
}

/* ------------------------------------------------------------------------------------------------------- events */

enum act { GO, FAIL, HALF, HALF_AND_DIE };
enum kind { FREES, NAMES, NEEDS_ROOM, WRITES };

static _Noreturn void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static void note(bool fault_now, long number, const char* name, size_t bytes, const char* path) {
  char line[PATH_MAX + 100];
  int length = snprintf(line, sizeof line, "%s%ld %s %zu %s\n", fault_now ? "!" : "", number, name, bytes, path);
  syscall(SYS_write, log_file, line, (size_t)length);
}

static void cut_power(void);
static void wait_for_power(void);

/* An operation on `path`, below the root, is about to happen. FAIL: not, and errno is set. */
static enum act event(const char* name, const char* path, enum kind kind, size_t bytes) {
  if (fault == MEMORY || fault == CLOCK) return GO;
  const int before = errno;
  if (fault == CUT) wait_for_power();
  const long number = event_number = __atomic_add_fetch(&events, 1, __ATOMIC_SEQ_CST);
  const bool now = number == fault_at, since = fault_at && number >= fault_at;
  if (now) note(true, number, name, bytes, path);
  note(false, number, name, bytes, path);
  errno = before;
  switch (fault) {
    case KILL:
      if (now && kind == WRITES && bytes > 1) return HALF_AND_DIE;
      if (now) die();
      return GO;
    case CUT:
      if (now) cut_power();
      return GO;
    case TERM:
    case INT:
    case USR1:
    case STOP:
      if (now) kill(getpid(), fault == TERM ? SIGTERM : fault == INT ? SIGINT : fault == USR1 ? SIGUSR1 : SIGSTOP);
      return GO;
    case FULL:
      if (!since || kind < NEEDS_ROOM) return GO;
      errno = ENOSPC;
      return FAIL;
    case READONLY:
      if (!since) return GO;
      errno = EROFS;
      return FAIL;
    case IO:
      if (!now) return GO;
      errno = EIO;
      return FAIL;
    case SHORT: return since && kind == WRITES && bytes > 1 ? HALF : GO;
    default: return GO;
  }
}

/* Whether a file is below the root; if so, `path` is its path. */
static bool of_name(int folder, const char* name, char path[PATH_MAX]) {
  if (!root_length || !name) return false;
  size_t used = 0;
  if (name[0] != '/') {
    char link[64];
    if (folder == AT_FDCWD)
      strcpy(link, "/proc/self/cwd");
    else
      snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    const ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return false;
    used = (size_t)length;
    path[used++] = '/';
  }
  if (used + strlen(name) >= PATH_MAX) return false;
  strcpy(path + used, name);
  return !strncmp(path, root, root_length) && path[root_length] == '/';
}

static bool of_handle(int handle, char path[PATH_MAX]) {
  if (!root_length || handle < 0) return false;
  const int before = errno;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  const ssize_t length = readlink(link, path, PATH_MAX - 1);
  errno = before;
  if (length < 0) return false;
  path[length] = 0;
  return !strncmp(path, root, root_length) && path[root_length] == '/';
}

/* ----------------------------------------------------------------------------------- what is not on the device yet */

static pthread_mutex_t unflushed = PTHREAD_MUTEX_INITIALIZER;
static struct file {
  dev_t device;
  ino_t number;
}* changed;
static char** names;
static size_t changed_count, names_count;

static bool is(const struct file* file, const struct stat* status) {
  return file->device == status->st_dev && file->number == status->st_ino;
}

static void content_changed(int handle) {
  struct stat status;
  if (fault != CUT || fstat(handle, &status)) return;
  pthread_mutex_lock(&unflushed);
  size_t i = 0;
  while (i < changed_count && !is(&changed[i], &status)) ++i;
  if (i == changed_count) {
    changed = realloc(changed, (changed_count + 1) * sizeof *changed);
    changed[changed_count++] = (struct file){status.st_dev, status.st_ino};
  }
  pthread_mutex_unlock(&unflushed);
}

static void name_made(const char* path) {
  if (fault != CUT) return;
  pthread_mutex_lock(&unflushed);
  names = realloc(names, (names_count + 1) * sizeof *names);
  names[names_count++] = strdup(path);
  pthread_mutex_unlock(&unflushed);
}

/* Forget names: that one; with `children` those directly in that directory. */
static void forget_names(const char* path, bool children) {
  const size_t length = strlen(path);
  size_t left = 0;
  for (size_t i = 0; i < names_count; ++i) {
    const bool below =
        !strncmp(names[i], path, length) && names[i][length] == '/' && !strchr(names[i] + length + 1, '/');
    if (children ? below : !strcmp(names[i], path))
      free(names[i]);
    else
      names[left++] = names[i];
  }
  names_count = left;
}

static void name_gone(const char* path) {
  if (fault != CUT) return;
  pthread_mutex_lock(&unflushed);
  forget_names(path, false);
  pthread_mutex_unlock(&unflushed);
}

static void renamed(const char* old, const char* new, bool existed) {
  if (fault != CUT) return;
  name_gone(old);
  pthread_mutex_lock(&unflushed);
  const size_t length = strlen(old);
  for (size_t i = 0; i < names_count; ++i)
    if (!strncmp(names[i], old, length) && names[i][length] == '/') {
      char moved[2 * PATH_MAX];
      snprintf(moved, sizeof moved, "%s%s", new, names[i] + length);
      free(names[i]);
      names[i] = strdup(moved);
    }
  pthread_mutex_unlock(&unflushed);
  if (!existed) name_made(new);
}

static void flushed(int handle, const char* path, bool all) {
  struct stat status;
  if (fault != CUT || fstat(handle, &status)) return;
  pthread_mutex_lock(&unflushed);
  if (all) {
    changed_count = names_count = 0;
  } else if (S_ISDIR(status.st_mode)) {
    forget_names(path, true);
  } else {
    size_t left = 0;
    for (size_t i = 0; i < changed_count; ++i)
      if (!is(&changed[i], &status)) changed[left++] = changed[i];
    changed_count = left;
  }
  pthread_mutex_unlock(&unflushed);
}

static int empty_if_changed(const char* path, const struct stat* status, int type, struct FTW* at) {
  (void)at;
  for (size_t i = 0; type == FTW_F && i < changed_count; ++i)
    if (is(&changed[i], status)) syscall(SYS_truncate, path, 0L);
  return 0;
}

static int take_away(const char* path, const struct stat* status, int type, struct FTW* at) {
  (void)status, (void)at;
  syscall(SYS_unlinkat, AT_FDCWD, path, type == FTW_DP ? AT_REMOVEDIR : 0);
  return 0;
}

static void wait_for_power(void) {
  pthread_mutex_lock(&unflushed);
  pthread_mutex_unlock(&unflushed);
}

static void lose_what_is_not_flushed(void) {
  fault = NONE;
  nftw(root, empty_if_changed, 16, FTW_PHYS);
  for (size_t i = 0; i < names_count; ++i) nftw(names[i], take_away, 16, FTW_PHYS | FTW_DEPTH);
}

/* The lock stays taken, so that other threads end what they are at and begin nothing. What is lost is taken away by a
   child when this process is gone; its starter waits for the pipes that the child has too. */
static void cut_power(void) {
  pthread_mutex_lock(&unflushed);
  const pid_t parent = getpid();
  if (fork()) die();
  while (getppid() == parent) usleep(1000);
  lose_what_is_not_flushed();
  _exit(0);
}

static size_t changed_and_there;

static int count_if_changed(const char* path, const struct stat* status, int type, struct FTW* at) {
  (void)path, (void)at;
  for (size_t i = 0; type == FTW_F && i < changed_count; ++i) changed_and_there += is(&changed[i], status);
  return 0;
}

/* Files that were changed and are gone by now, as beats of the lock are, are no loss. */
__attribute__((destructor)) static void end(void) {
  if (fault != CUT) return;
  nftw(root, count_if_changed, 16, FTW_PHYS);
  if (!changed_and_there && !names_count) return;
  note(true, events, "end", 0, names_count ? names[0] : "a file that was not flushed");
  lose_what_is_not_flushed();
  die();
}

/* --------------------------------------------------------------------------------------------------- opening */

static bool is_there(const char* path) {
  struct stat status;
  return fault == CUT && !lstat(path, &status);
}

static bool opens_to_write(int flags) {
  return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE;
}

#define MODE_ARGUMENT                                          \
  mode_t mode = 0;                                             \
  if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { \
    va_list rest;                                              \
    va_start(rest, flags);                                     \
    mode = (mode_t)va_arg(rest, unsigned);                     \
    va_end(rest);                                              \
  }

#define OPEN(call, name, folder, file, flags)                                                    \
  char path[PATH_MAX];                                                                           \
  const bool counts = opens_to_write(flags) && of_name(folder, file, path);                      \
  const bool existed = counts && is_there(path);                                                 \
  if (counts && event(name, path, (flags) & O_CREAT ? NEEDS_ROOM : FREES, 0) == FAIL) return -1; \
  const int handle = call;                                                                       \
  if (counts && handle >= 0 && ((flags) & O_CREAT) && !existed) name_made(path);                 \
  if (counts && handle >= 0 && ((flags) & O_TRUNC)) content_changed(handle);                     \
  return handle

int open(const char* file, int flags, ...) {
  NEXT(open);
  MODE_ARGUMENT
  OPEN(next(file, flags, mode), "open", AT_FDCWD, file, flags);
}

int open64(const char* file, int flags, ...) {
  NEXT(open64);
  MODE_ARGUMENT
  OPEN(next(file, flags, mode), "open", AT_FDCWD, file, flags);
}

int openat(int folder, const char* file, int flags, ...) {
  NEXT(openat);
  MODE_ARGUMENT
  OPEN(next(folder, file, flags, mode), "open", folder, file, flags);
}

int openat64(int folder, const char* file, int flags, ...) {
  NEXT(openat64);
  MODE_ARGUMENT
  OPEN(next(folder, file, flags, mode), "open", folder, file, flags);
}

int creat(const char* file, mode_t mode) { return open(file, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char* file, mode_t mode) { return open(file, O_WRONLY | O_CREAT | O_TRUNC, mode); }

int mkostemp(char* pattern, int flags) {
  NEXT(mkostemp);
  char path[PATH_MAX];
  if (of_name(AT_FDCWD, pattern, path) && event("open", path, NEEDS_ROOM, 0) == FAIL) return -1;
  const int handle = next(pattern, flags);
  if (handle >= 0 && of_name(AT_FDCWD, pattern, path)) name_made(path);
  return handle;
}

int mkostemp64(char* pattern, int flags) { return mkostemp(pattern, flags); }
int mkstemp(char* pattern) { return mkostemp(pattern, 0); }
int mkstemp64(char* pattern) { return mkostemp(pattern, 0); }

/* --------------------------------------------------------------------------------------------------- writing */

/* The bytes that a write may take: all, half, or none (-1). */
static ssize_t allowed(const char* name, int handle, size_t bytes, bool* last) {
  char path[PATH_MAX];
  *last = false;
  if (!of_handle(handle, path)) return (ssize_t)bytes;
  switch (event(name, path, WRITES, bytes)) {
    case GO: content_changed(handle); return (ssize_t)bytes;
    case FAIL: return -1;
    case HALF_AND_DIE: *last = true; return (ssize_t)(bytes / 2);
    default: return (ssize_t)(bytes / 2);
  }
}

#define WRITE(name, bytes, call)                               \
  NEXT(name);                                                  \
  bool last;                                                   \
  const ssize_t take = allowed("write", handle, bytes, &last); \
  if (take < 0) return -1;                                     \
  const ssize_t done = call;                                   \
  if (last) die();                                             \
  return done

ssize_t write(int handle, const void* data, size_t bytes) { WRITE(write, bytes, next(handle, data, (size_t)take)); }

ssize_t pwrite(int handle, const void* data, size_t bytes, off_t at) {
  WRITE(pwrite, bytes, next(handle, data, (size_t)take, at));
}

ssize_t pwrite64(int handle, const void* data, size_t bytes, off64_t at) {
  WRITE(pwrite64, bytes, next(handle, data, (size_t)take, at));
}

ssize_t sendfile(int handle, int from, off_t* at, size_t bytes) {
  WRITE(sendfile, bytes, next(handle, from, at, (size_t)take));
}

ssize_t sendfile64(int handle, int from, off64_t* at, size_t bytes) {
  WRITE(sendfile64, bytes, next(handle, from, at, (size_t)take));
}

ssize_t copy_file_range(int from, off64_t* from_at, int handle, off64_t* at, size_t bytes, unsigned flags) {
  WRITE(copy_file_range, bytes, next(from, from_at, handle, at, (size_t)take, flags));
}

static size_t total(const struct iovec* parts, int count) {
  size_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += parts[i].iov_len;
  return bytes;
}

/* What is less than all is the first half of the parts, or of the only one. */
#define WRITE_PARTS(name, call)                                                     \
  NEXT(name);                                                                       \
  bool last;                                                                        \
  const size_t bytes = total(parts, count);                                         \
  const ssize_t take = allowed("write", handle, bytes, &last);                      \
  if (take < 0) return -1;                                                          \
  struct iovec one = count ? parts[0] : (struct iovec){NULL, 0};                    \
  if ((size_t)take < bytes && count == 1) one.iov_len = (size_t)take, parts = &one; \
  if ((size_t)take < bytes && count > 1) count /= 2;                                \
  const ssize_t done = call;                                                        \
  if (last) die();                                                                  \
  return done

ssize_t writev(int handle, const struct iovec* parts, int count) { WRITE_PARTS(writev, next(handle, parts, count)); }

ssize_t pwritev(int handle, const struct iovec* parts, int count, off_t at) {
  WRITE_PARTS(pwritev, next(handle, parts, count, at));
}

ssize_t pwritev64(int handle, const struct iovec* parts, int count, off64_t at) {
  WRITE_PARTS(pwritev64, next(handle, parts, count, at));
}

ssize_t pwritev2(int handle, const struct iovec* parts, int count, off_t at, int flags) {
  WRITE_PARTS(pwritev2, next(handle, parts, count, at, flags));
}

ssize_t pwritev64v2(int handle, const struct iovec* parts, int count, off64_t at, int flags) {
  WRITE_PARTS(pwritev64v2, next(handle, parts, count, at, flags));
}

/* -------------------------------------------------------------------------------------------------- flushing */

/* Nobody waits for the device: a process that dies leaves what it wrote with the system, and `cut` keeps its own books.
 */
#define FLUSH(name, all)                                      \
  int name(int handle) {                                      \
    NEXT(name);                                               \
    char path[PATH_MAX];                                      \
    if (!of_handle(handle, path)) return next(handle);        \
    if (event(#name, path, NEEDS_ROOM, 0) == FAIL) return -1; \
    flushed(handle, path, all);                               \
    return 0;                                                 \
  }

FLUSH(fsync, false)
FLUSH(fdatasync, false)
FLUSH(syncfs, true)

/* ------------------------------------------------------------------------------------- all the rest, alike */

#define OPERATION(name, parameters, call, where, kind, after)     \
  int name parameters {                                           \
    NEXT(name);                                                   \
    char path[PATH_MAX];                                          \
    const bool counts = where;                                    \
    const bool existed = counts && is_there(path);                \
    (void)existed;                                                \
    if (counts && event(#name, path, kind, 0) == FAIL) return -1; \
    const int done = next call;                                   \
    if (counts && !done) after;                                   \
    return done;                                                  \
  }

OPERATION(ftruncate, (int handle, off_t size), (handle, size), of_handle(handle, path), NEEDS_ROOM,
          content_changed(handle))
OPERATION(ftruncate64, (int handle, off64_t size), (handle, size), of_handle(handle, path), NEEDS_ROOM,
          content_changed(handle))
OPERATION(fallocate, (int handle, int mode, off_t at, off_t size), (handle, mode, at, size), of_handle(handle, path),
          NEEDS_ROOM, content_changed(handle))
OPERATION(fallocate64, (int handle, int mode, off64_t at, off64_t size), (handle, mode, at, size),
          of_handle(handle, path), NEEDS_ROOM, content_changed(handle))
OPERATION(mkdir, (const char* file, mode_t mode), (file, mode), of_name(AT_FDCWD, file, path), NEEDS_ROOM,
          name_made(path))
OPERATION(mkdirat, (int folder, const char* file, mode_t mode), (folder, file, mode), of_name(folder, file, path),
          NEEDS_ROOM, name_made(path))
OPERATION(link, (const char* old, const char* new), (old, new), of_name(AT_FDCWD, new, path), NEEDS_ROOM,
          name_made(path))
OPERATION(linkat, (int from, const char* old, int to, const char* new, int flags), (from, old, to, new, flags),
          of_name(to, new, path), NEEDS_ROOM, name_made(path))
OPERATION(symlink, (const char* old, const char* new), (old, new), of_name(AT_FDCWD, new, path), NEEDS_ROOM,
          name_made(path))
OPERATION(symlinkat, (const char* old, int to, const char* new), (old, to, new), of_name(to, new, path), NEEDS_ROOM,
          name_made(path))
OPERATION(unlink, (const char* file), (file), of_name(AT_FDCWD, file, path), FREES, name_gone(path))
OPERATION(unlinkat, (int folder, const char* file, int flags), (folder, file, flags), of_name(folder, file, path),
          FREES, name_gone(path))
OPERATION(rmdir, (const char* file), (file), of_name(AT_FDCWD, file, path), FREES, name_gone(path))

static void renamed_at(int from, const char* old, const char* path, bool existed) {
  char before[PATH_MAX];
  if (event_number && of_name(from, old, before)) {
    note(false, event_number, "from", 0, before);
    renamed(before, path, existed);
  }
}

OPERATION(rename, (const char* old, const char* new), (old, new), of_name(AT_FDCWD, new, path), NAMES,
          renamed_at(AT_FDCWD, old, path, existed))
OPERATION(renameat, (int from, const char* old, int to, const char* new), (from, old, to, new), of_name(to, new, path),
          NAMES, renamed_at(from, old, path, existed))
OPERATION(renameat2, (int from, const char* old, int to, const char* new, unsigned flags), (from, old, to, new, flags),
          of_name(to, new, path), NAMES, renamed_at(from, old, path, existed))

/* It returns what went wrong, and leaves errno alone. */
#define RESERVE(name, offset)                                                         \
  int name(int handle, offset at, offset size) {                                      \
    NEXT(name);                                                                       \
    char path[PATH_MAX];                                                              \
    const int before = errno;                                                         \
    if (of_handle(handle, path) && event("fallocate", path, NEEDS_ROOM, 0) == FAIL) { \
      const int why = errno;                                                          \
      errno = before;                                                                 \
      return why;                                                                     \
    }                                                                                 \
    return next(handle, at, size);                                                    \
  }

RESERVE(posix_fallocate, off_t)
RESERVE(posix_fallocate64, off64_t)

/* ---------------------------------------------------------------------------------------------------- memory */

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

#define LARGE ((size_t)1 << 20)

static bool no_memory(size_t bytes) {
  if (fault != MEMORY || bytes < LARGE) return false;
  const long number = __atomic_add_fetch(&events, 1, __ATOMIC_SEQ_CST);
  const bool worker = syscall(SYS_gettid) != getpid();
  if (number == fault_at) note(true, number, "allocate", bytes, worker ? "worker" : "main");
  note(false, number, "allocate", bytes, worker ? "worker" : "main");
  if (number == fault_at) errno = ENOMEM;
  return number == fault_at;
}

void* malloc(size_t bytes) { return no_memory(bytes) ? NULL : __libc_malloc(bytes); }

void* calloc(size_t count, size_t bytes) {
  return bytes && count <= SIZE_MAX / bytes && no_memory(count * bytes) ? NULL : __libc_calloc(count, bytes);
}

void* realloc(void* old, size_t bytes) { return no_memory(bytes) ? NULL : __libc_realloc(old, bytes); }
void* memalign(size_t alignment, size_t bytes) { return no_memory(bytes) ? NULL : __libc_memalign(alignment, bytes); }
void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void** out, size_t alignment, size_t bytes) {
  const int before = errno;
  void* made = memalign(alignment, bytes);
  errno = before;
  if (!made) return ENOMEM;
  *out = made;
  return 0;
}

#define MAP(name, offset)                                                                     \
  void* name(void* address, size_t bytes, int protection, int flags, int handle, offset at) { \
    NEXT(name);                                                                               \
    if ((flags & MAP_ANONYMOUS) && no_memory(bytes)) return MAP_FAILED;                       \
    return next(address, bytes, protection, flags, handle, at);                               \
  }

MAP(mmap, off_t)
MAP(mmap64, off64_t)

/* ----------------------------------------------------------------------------------------------------- clock */

/* Seconds to add to the time of day: an hour before or after, changing at every `fault_at`-th look. */
static time_t jump(void) {
  if (fault != CLOCK || !fault_at) return 0;
  const long number = __atomic_add_fetch(&events, 1, __ATOMIC_SEQ_CST);
  return number / fault_at % 2 ? 3600 : -3600;
}

int clock_gettime(clockid_t clock, struct timespec* out) {
  NEXT(clock_gettime);
  const int done = next(clock, out);
  if (!done && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) out->tv_sec += jump();
  return done;
}

int gettimeofday(struct timeval* restrict out, void* restrict zone) {
  NEXT(gettimeofday);
  const int done = next(out, zone);
  if (!done) out->tv_sec += jump();
  return done;
}

time_t time(time_t* out) {
  NEXT(time);
  const time_t now = next(NULL) + jump();
  if (out) *out = now;
  return now;
}
