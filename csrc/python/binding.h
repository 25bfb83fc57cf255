// What the files of the binding share: arrays checked and handed over, signals during native loops.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "cpu/parallel.h"

namespace gpudedup {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;
template <class T>
using Maybe = std::optional<Array<T>>;

/// Lets Ctrl-C end a native loop: the pending KeyboardInterrupt is thrown through it.
inline void poll_signals() {
  py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

inline Context make_context(unsigned workers) { return Context(workers, poll_signals); }

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class T>
const T* data_or_null(const Maybe<T>& array) {
  return array ? array->data() : nullptr;
}

template <class T>
void require_size(const Maybe<T>& array, size_t size, const char* message) {
  require(!array || static_cast<size_t>(array->size()) == size, message);
}

/// An array that owns the vector's memory.
template <class T>
Array<T> to_array(std::vector<T>&& values) {
  auto* owner = new std::vector<T>(std::move(values));
  py::capsule release(owner, [](void* pointer) { delete static_cast<std::vector<T>*>(pointer); });
  return Array<T>(static_cast<py::ssize_t>(owner->size()), owner->data(), release);
}

/// Adds gpudedup._cpu.Stream.
void bind_stream(py::module_& m);

}  // namespace gpudedup
