#include "cpu/scratch.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <system_error>

namespace gpudedup {
namespace {

[[noreturn]] void fail(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

void* map_bytes(size_t bytes, int kind, int file) {
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kind, file, 0);
#if defined(MADV_HUGEPAGE)
  if (address != MAP_FAILED) ::madvise(address, bytes, MADV_HUGEPAGE);  // fewer page faults; advice only
#endif
  return address;
}

}  // namespace

Mapping Mapping::of_memory(size_t bytes) {
  if (bytes == 0) return Mapping();
  void* address = map_bytes(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  if (address == MAP_FAILED) fail(errno, std::to_string(bytes) + " bytes of memory");
  return Mapping(address, bytes);
}

Mapping Mapping::of_file(size_t bytes, const std::string& directory) {
  if (bytes == 0) return Mapping();
  std::string name = directory + "/gpudedup-XXXXXX";
  int file = ::mkostemp(name.data(), O_CLOEXEC);
  if (file < 0) fail(errno, directory);
  ::unlink(name.c_str());
  int error;
  do error = ::posix_fallocate(file, 0, static_cast<off_t>(bytes));
  while (error == EINTR);
  void* address = error ? MAP_FAILED : map_bytes(bytes, MAP_SHARED, file);
  if (!error && address == MAP_FAILED) error = errno;
  ::close(file);
  if (error) fail(error, directory);
  return Mapping(address, bytes);
}

Mapping::~Mapping() {
  if (address_) ::munmap(address_, bytes_);
}

Mapping Scratch::map(size_t bytes) {
  bool memory = in_memory_ + bytes <= memory_bytes_;
  Mapping mapping = memory ? Mapping::of_memory(bytes) : Mapping::of_file(bytes, directory_);
  (memory ? in_memory_ : on_disk_) += bytes;
  return mapping;
}

}  // namespace gpudedup
